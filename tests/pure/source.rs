//! Rust source, as far as these tests read it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What source is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Word(String),
    /// `::`
    Path,
    Mark(char),
}

/// Words, `::` and marks; without comments, literals and lifetimes.
pub fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let starts = |at: usize, what: &str| text[at..].iter().take(what.len()).copied().eq(what.chars());
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let character = text[at];
        if starts(at, "//") {
            at += text[at..].iter().take_while(|c| **c != '\n').count();
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                depth += i32::from(starts(at, "/*")) - i32::from(starts(at, "*/"));
                at += if starts(at, "/*") || starts(at, "*/") { 2 } else { 1 };
                if depth == 0 || at >= text.len() {
                    break;
                }
            }
        } else if character == '"' {
            at += 1;
            while at < text.len() && text[at] != '"' {
                at += if text[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if starts(at, "r\"") || starts(at, "r#") && text[at + 1..].iter().find(|c| **c != '#') == Some(&'"') {
            let marks = text[at + 1..].iter().take_while(|c| **c == '#').count();
            let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', marks)).collect();
            at += marks + 2;
            while at < text.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
        } else if character == '\'' {
            // a character, or a lifetime
            let escaped = text.get(at + 1) == Some(&'\\');
            let is_character = escaped || text.get(at + 2) == Some(&'\'');
            at += if is_character { 2 + usize::from(escaped) } else { 1 };
            while is_character && at < text.len() && text[at] != '\'' {
                at += 1;
            }
            at += usize::from(is_character);
        } else if character.is_alphanumeric() || character == '_' {
            let word: String = text[at..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
            at += word.chars().count();
            found.push(Token::Word(word));
        } else if starts(at, "::") {
            found.push(Token::Path);
            at += 2;
        } else {
            if !character.is_whitespace() {
                found.push(Token::Mark(character));
            }
            at += 1;
        }
    }
    found
}

/// The code that is built into the product: without what follows `#[cfg(test)]`, up to the end of its block.
pub fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mark = |c| Token::Mark(c);
    let word = |w: &str| Token::Word(w.to_owned());
    let attribute = [mark('#'), mark('['), word("cfg"), mark('('), word("test"), mark(')'), mark(']')];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !tokens[at..].starts_with(&attribute) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += attribute.len();
        let mut depth = 0;
        while at < tokens.len() {
            let token = &tokens[at];
            at += 1;
            depth += i32::from(*token == mark('{')) - i32::from(*token == mark('}'));
            if depth == 0 && (*token == mark('}') || *token == mark(';')) {
                break;
            }
        }
    }
    kept
}

/// Every path that the code names, those of `use` trees written out.
pub fn paths(tokens: &[Token]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at] == Token::Word("use".to_owned()) {
            at = tree(tokens, at + 1, "", &mut found);
            continue;
        }
        let Token::Word(first) = &tokens[at] else {
            at += 1;
            continue;
        };
        let method = at > 0 && (tokens[at - 1] == Token::Mark('.') || tokens[at - 1] == Token::Path);
        let mut path = first.clone();
        at += 1;
        while let (Some(Token::Path), Some(Token::Word(next))) = (tokens.get(at), tokens.get(at + 1)) {
            path.push_str("::");
            path.push_str(next);
            at += 2;
        }
        if !method && path.contains("::") {
            found.push(path);
        }
    }
    found
}

fn tree(tokens: &[Token], mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut path = prefix.to_owned();
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Word(word) if word == "as" => at += 1,
            Token::Word(word) => {
                path.push_str(word);
                if tokens.get(at + 1) != Some(&Token::Path) {
                    found.push(path.clone());
                }
            }
            Token::Path => path.push_str("::"),
            Token::Mark('{') => loop {
                at = tree(tokens, at + 1, &path, found);
                if tokens.get(at) != Some(&Token::Mark(',')) {
                    break;
                }
            },
            Token::Mark('*') => found.push(format!("{path}*")),
            Token::Mark(_) => return at,
        }
        at += 1;
    }
    at
}

/// The files of a directory and below it, or the file itself.
pub fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).expect("the directory is there");
    let below = entries.flat_map(|entry| sources(&entry.expect("an entry").path()));
    below.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}
