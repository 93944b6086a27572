//! What kubectl offers on TAB: it runs `kubectl_complete-sluice` with the words that were typed, and reads one offer a line, and a last line
//! that says what the shell is to do with them.

use clap::{Arg, ArgAction, Command};

/// No file names are offered beside: bit 2 of cobra's directives.
const NO_FILES: &str = ":4";
/// What the shell does by itself: file names.
const FILES: &str = ":0";

/// What is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// These words, with what they are for after a tab.
    Words(Vec<String>),
    /// The pools of the namespace.
    Pools {
        /// What their names begin with.
        beginning: String,
        /// Namespace, context and kubeconfig as they were typed.
        cluster: Vec<String>,
    },
    /// File names.
    Files,
}

/// What there is to offer for the words that were typed, the last of them unfinished.
pub fn offer(root: &Command, words: &[String]) -> Offer {
    let (typed, last) = words.split_last().map_or((&[][..], ""), |(last, typed)| (typed, last.as_str()));
    let mut command = root;
    let mut cluster = Vec::new();
    let mut awaits: Option<&Arg> = None;
    let mut positionals = 0;
    for word in typed {
        if let Some(flag) = awaits.take() {
            if is_of_cluster(flag) {
                cluster.extend([format!("--{}", flag.get_long().unwrap_or_default()), word.clone()]);
            }
            continue;
        }
        let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        match (flag(root, command, name), value) {
            (Some(flag), None) if takes_value(flag) => awaits = Some(flag),
            (Some(flag), Some(value)) if is_of_cluster(flag) => {
                cluster.extend([format!("--{}", flag.get_long().unwrap_or_default()), value.to_owned()]);
            }
            (Some(_), _) => {}
            (None, _) => match command.find_subcommand(word) {
                Some(verb) => command = verb,
                None => positionals += 1,
            },
        }
    }
    if let Some(flag) = awaits {
        return values(flag, "", last);
    }
    if let Some((name, value)) = last.split_once('=')
        && let Some(flag) = flag(root, command, name)
    {
        return values(flag, &format!("{name}="), value);
    }
    if last.starts_with('-') {
        return Offer::Words(flags(root, command, last));
    }
    if command.has_subcommands() {
        let offered =
            command.get_subcommands().filter(|verb| verb.get_name().starts_with(last) && verb.get_name() != "help");
        let about = |verb: &Command| verb.get_about().map(ToString::to_string).unwrap_or_default();
        return Offer::Words(offered.map(|verb| with_words(verb.get_name(), &about(verb))).collect());
    }
    // the last positional takes all that follow, where it takes several
    let next = command.get_positionals().nth(positionals);
    let next = next.or_else(|| command.get_positionals().find(|positional| takes_several(positional)));
    if next.is_some_and(|positional| positional.get_id().as_str().starts_with("pool")) {
        return Offer::Pools { beginning: last.to_owned(), cluster };
    }
    Offer::Words(Vec::new())
}

/// The flag of this name, of the verb or of all verbs.
fn flag<'a>(root: &'a Command, command: &'a Command, name: &str) -> Option<&'a Arg> {
    let mut all = command.get_arguments().chain(root.get_arguments());
    if let Some(long) = name.strip_prefix("--") {
        return all.find(|flag| flag.get_long() == Some(long));
    }
    let short = name.strip_prefix('-')?.chars().next()?;
    all.find(|flag| flag.get_short() == Some(short))
}

fn takes_value(flag: &Arg) -> bool {
    // one whose value may be left out takes it after `=` only
    matches!(flag.get_action(), ArgAction::Set | ArgAction::Append)
        && flag.get_num_args().is_none_or(|values| values.min_values() > 0)
}

fn takes_several(positional: &Arg) -> bool {
    matches!(positional.get_action(), ArgAction::Append)
}

fn is_of_cluster(flag: &Arg) -> bool {
    ["namespace", "context", "kubeconfig", "as"].contains(&flag.get_long().unwrap_or_default())
}

fn values(flag: &Arg, prefix: &str, beginning: &str) -> Offer {
    if flag.get_long() == Some("kubeconfig") {
        return Offer::Files;
    }
    let possible = flag.get_possible_values();
    let possible = possible.iter().filter(|value| value.get_name().starts_with(beginning));
    let help = |value: &clap::builder::PossibleValue| value.get_help().map(ToString::to_string).unwrap_or_default();
    Offer::Words(possible.map(|value| with_words(&format!("{prefix}{}", value.get_name()), &help(value))).collect())
}

fn flags(root: &Command, command: &Command, beginning: &str) -> Vec<String> {
    let all = command.get_arguments().chain(root.get_arguments());
    let all = all.filter(|flag| !flag.is_hide_set()).filter_map(|flag| Some((format!("--{}", flag.get_long()?), flag)));
    let mut offered: Vec<String> = all
        .filter(|(name, _)| name.starts_with(beginning))
        .map(|(name, flag)| with_words(&name, &flag.get_help().map(ToString::to_string).unwrap_or_default()))
        .collect();
    offered.sort();
    offered.dedup();
    offered
}

/// A word and what it is for: what stands before the first line break or full stop.
fn with_words(word: &str, about: &str) -> String {
    let about = about.lines().next().unwrap_or_default();
    let about = about.split_once(". ").map_or(about, |(first, _)| first).trim_end_matches('.');
    if about.is_empty() { word.to_owned() } else { format!("{word}\t{about}") }
}

/// What is printed for an offer; `pools` are the names of those that there are.
pub fn text(offer: &Offer, pools: &[String]) -> String {
    let (words, directive) = match offer {
        Offer::Files => (Vec::new(), FILES),
        Offer::Words(words) => (words.clone(), NO_FILES),
        Offer::Pools { beginning, .. } => {
            (pools.iter().filter(|pool| pool.starts_with(beginning.as_str())).cloned().collect(), NO_FILES)
        }
    };
    let lines = words.into_iter().chain([directive.to_owned()]);
    lines.map(|line| line + "\n").collect()
}
