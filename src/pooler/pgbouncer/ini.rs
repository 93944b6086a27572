//! PURE: reads a configuration the way PgBouncer does, to see before use what PgBouncer will make of it.
//!
//! The rules are those of PgBouncer 1.24's readers (libusual's `cfparser.c`, `loader.c`): a value runs to the end of its
//! line, comments only start a line, connection strings quote with `'` and the auth file with `"`, doubled inside.

use thiserror::Error;

/// Why a text would not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IniError {
    /// A line of the configuration is neither a section, a comment nor `key = value`.
    #[error("line {line} of the configuration is not `key = value`")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A connection string breaks off or holds an empty value.
    #[error("the connection string of database {database:?} cannot be read")]
    ConnectionString {
        /// Key of the entry.
        database: String,
    },
    /// The auth file breaks off.
    #[error("the auth file cannot be read at byte {offset}")]
    AuthFile {
        /// Where.
        offset: usize,
    },
}

/// One `key = value` of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the section.
    pub section: String,
    /// Key.
    pub key: String,
    /// Value, without the white space around it.
    pub value: String,
}

/// Reads a configuration file.
///
/// # Errors
/// [`IniError::Line`].
pub fn parse(text: &str) -> Result<Vec<Entry>, IniError> {
    let mut section = String::new();
    let mut entries = Vec::new();
    for (index, raw) in text.split('\n').enumerate() {
        let wrong = || IniError::Line { line: index + 1 };
        let line = raw.trim_matches(|c: char| c.is_ascii_whitespace());
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with("%include") {
            return Err(wrong());
        }
        if let Some(rest) = line.strip_prefix('[') {
            rest.strip_suffix(']').ok_or_else(wrong)?.clone_into(&mut section);
            continue;
        }
        let key_length = line
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'*'))
            .count();
        let (key, rest) = line.split_at(key_length);
        let value = rest.trim_start_matches([' ', '\t']).strip_prefix('=').ok_or_else(wrong)?;
        if key.is_empty() {
            return Err(wrong());
        }
        entries.push(Entry {
            section: section.clone(),
            key: key.to_owned(),
            value: value.trim_start_matches([' ', '\t']).to_owned(),
        });
    }
    Ok(entries)
}

/// Reads the connection string of one `[databases]` entry.
///
/// # Errors
/// [`IniError::ConnectionString`].
pub fn parse_connection_string(database: &str, text: &str) -> Result<Vec<(String, String)>, IniError> {
    let wrong = || IniError::ConnectionString { database: database.to_owned() };
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\r');
    let mut rest = text.trim_start_matches(is_space);
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(wrong)?;
        let key = key.trim_end_matches(is_space);
        if key.is_empty() || key.contains(' ') {
            return Err(wrong());
        }
        let after = after.trim_start_matches(is_space);
        let (value, tail) = match after.strip_prefix('\'') {
            Some(quoted) => unquote(quoted, '\'').ok_or_else(wrong)?,
            None => match after.split_once(' ') {
                Some((value, tail)) => (value.to_owned(), tail),
                None => (after.to_owned(), ""),
            },
        };
        if value.is_empty() {
            return Err(wrong());
        }
        pairs.push((key.to_owned(), value));
        // The reader cuts the value by overwriting the byte that follows it.
        rest = tail.trim_start_matches(is_space);
    }
    Ok(pairs)
}

/// Reads an auth file: user and password of each line.
///
/// # Errors
/// [`IniError::AuthFile`].
pub fn parse_auth_file(text: &str) -> Result<Vec<(String, String)>, IniError> {
    let mut rest = text;
    let mut users = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace());
        if rest.is_empty() {
            return Ok(users);
        }
        let wrong = || IniError::AuthFile { offset: text.len() - rest.len() };
        let (user, after) = unquote(rest.strip_prefix('"').ok_or_else(wrong)?, '"').ok_or_else(wrong)?;
        let (_, quoted) = after.split_once('"').ok_or_else(wrong)?;
        let (password, tail) = unquote(quoted, '"').ok_or_else(wrong)?;
        users.push((user, password));
        rest = tail.split_once('\n').map_or("", |(_, next)| next);
    }
}

/// Reads up to the closing quote; a doubled quote stands for one. Answers the value and what follows the closing quote.
fn unquote(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        if c != quote {
            value.push(c);
        } else if text[index + 1..].starts_with(quote) {
            chars.next();
            value.push(quote);
        } else {
            return Some((value, &text[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sections_comments_and_values_are_read_as_pgbouncer_reads_them() {
        let text =
            "; comment\n[databases]\nshop = host='a b' port=1\n\n# comment\n[pgbouncer]\nlogfile =\nx=a;b = c  \n";
        let entries = parse(text).unwrap();
        let read: Vec<_> = entries.iter().map(|e| (e.section.as_str(), e.key.as_str(), e.value.as_str())).collect();
        assert_eq!(
            read,
            [("databases", "shop", "host='a b' port=1"), ("pgbouncer", "logfile", ""), ("pgbouncer", "x", "a;b = c")]
        );
    }

    #[test]
    fn an_include_is_refused() {
        assert_eq!(parse("[pgbouncer]\n%include /etc/passwd\n"), Err(IniError::Line { line: 2 }));
    }

    #[test]
    fn an_empty_value_of_a_connection_string_is_refused() {
        assert!(parse_connection_string("shop", "host= ").is_err());
        assert!(parse_connection_string("shop", "host=''").is_err());
        assert!(parse_connection_string("shop", "host='a").is_err());
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in any::<String>()) {
            let _ = parse(&text);
            let _ = parse_connection_string("d", &text);
            let _ = parse_auth_file(&text);
        }
    }
}
