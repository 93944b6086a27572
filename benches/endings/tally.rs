//! What the applications of `application.sh` have met, read from the files that they leave.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

/// Queries of a connection that lives three seconds.
const QUERIES_OF_LONG: u64 = 30;
/// Words that only the database itself has for turning somebody away.
const DATABASE_SAYS: [&str; 3] =
    ["the database system is ", "sorry, too many clients already", "remaining connection slots are reserved"];

/// Who is to blame for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The database said it.
    Database,
    /// Anything else: whoever has no other explanation.
    Pooler,
}

/// Something that did not go well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// What was being done: short, long or transaction.
    pub sort: String,
    /// What psql said.
    pub said: String,
}

impl Lost {
    fn parse(line: &str) -> Self {
        let (sort, said) = line.split_once(' ').unwrap_or((line, ""));
        Self { sort: sort.to_owned(), said: said.trim().to_owned() }
    }

    /// In a word or two.
    pub fn kind(&self) -> String {
        let known = [
            ("wrong answer", "wrong answer"),
            ("Connection refused", "refused"),
            ("Connection reset by peer", "reset"),
            ("closed the connection unexpectedly", "closed"),
            ("timeout expired", "deadline"),
            ("could not translate host name", "no such name"),
        ];
        let found = known.iter().find(|(words, _)| self.said.contains(words));
        let said = || {
            let told = ["FATAL:", "ERROR:"].iter().find_map(|level| Some(self.said.split_once(level)?.1));
            told.unwrap_or(&self.said).trim().replace(',', ";")
        };
        format!("{}/{}", self.sort, found.map_or_else(said, |(_, kind)| (*kind).to_owned()))
    }

    /// Who is to blame.
    pub fn origin(&self) -> Origin {
        let database = DATABASE_SAYS.iter().any(|words| self.said.contains(words));
        if database { Origin::Database } else { Origin::Pooler }
    }
}

/// What all applications of a directory have met so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// What went well, by its sort.
    pub done: BTreeMap<String, u64>,
    /// What did not.
    pub lost: Vec<Lost>,
    /// Pods that have begun.
    pub begun: BTreeSet<String>,
    /// Pods whose application finished all that it was at.
    pub ended: BTreeSet<String>,
}

impl Tally {
    /// Reads a directory.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let mut tally = Self::default();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((pod, sort)) = name.rsplit_once('.') else { continue };
            match sort {
                "ended" => {
                    tally.ended.insert(pod.to_owned());
                }
                "lost" => {
                    let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                    tally.lost.extend(text.lines().filter(|line| !line.trim().is_empty()).map(Lost::parse));
                }
                sort => {
                    *tally.done.entry(sort.to_owned()).or_default() += fs::metadata(&path)?.len();
                    tally.begun.insert(pod.to_owned());
                }
            }
        }
        Ok(tally)
    }

    fn count(&self, sort: &str) -> u64 {
        self.done.get(sort).copied().unwrap_or_default()
    }

    /// Connections that were made and went well to their end.
    pub fn connections(&self) -> u64 {
        self.done.values().sum()
    }

    /// Queries that went well.
    pub fn queries(&self) -> u64 {
        self.count("short") + QUERIES_OF_LONG * self.count("long") + self.transactions()
    }

    /// Transactions that were committed.
    pub fn transactions(&self) -> u64 {
        self.count("transaction")
    }

    /// Failures that nobody but the pooler explains.
    pub fn of_pooler_origin(&self) -> usize {
        self.lost.iter().filter(|lost| lost.origin() == Origin::Pooler).count()
    }

    /// How often each kind of failure was met.
    pub fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for lost in &self.lost {
            *kinds.entry(lost.kind()).or_default() += 1;
        }
        kinds
    }
}
