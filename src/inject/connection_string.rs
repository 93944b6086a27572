//! PURE: the connection strings in a text, and what they set.

/// Schemes of URLs. The name of a driver may follow: `postgresql+psycopg://`.
const SCHEMES: [&str; 4] = ["postgresql", "postgres", "postgis", "pgsql"];
/// One of them is in every connection string of words.
const PLACES: [&str; 5] = ["host", "hostaddr", "server", "dbname", "database"];

/// Names and values of all that the connection strings of a text set behind the place, without their encoding.
pub fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for query in SCHEMES.iter().flat_map(|scheme| queries(text, scheme)) {
        // who has a question mark in the password has not encoded it
        let pairs = query.split(['?', '&']).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        found.extend(pairs.map(|(name, value)| (decoded(name), decoded(value))));
    }
    found.extend(words(text));
    found
}

/// The queries of the URLs of one scheme: what follows the question mark.
fn queries<'t>(text: &'t str, scheme: &str) -> Vec<&'t str> {
    let query = |(at, word): (usize, &str)| {
        let (before, behind) = (&text[..at], &text[at + word.len()..]);
        let behind = match behind.strip_prefix('+') {
            Some(driver) => driver.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_'),
            None => behind,
        };
        // JDBC has a short form without a host
        let is_jdbc = before.ends_with("jdbc:");
        let url = behind.strip_prefix("://").or_else(|| behind.strip_prefix(':').filter(|_| is_jdbc))?;
        // a blank is the end of one that stands among other words
        let is_among_words = before.contains(char::is_whitespace);
        let is_end = |c: char| matches!(c, '"' | '\'' | '`') || is_among_words && c.is_whitespace();
        let (_, query) = url.split(is_end).next()?.split_once('?')?;
        Some(query)
    };
    text.match_indices(scheme).filter_map(query).collect()
}

/// What a text sets that is a connection string of words: `host=127.0.0.1 options='-c jit=off'`, `Host=127.0.0.1;Search Path=app`.
fn words(text: &str) -> Vec<(String, String)> {
    let has_semicolons = text.contains(';');
    let mut is_quoted = false;
    let parts = text.split(|c: char| {
        is_quoted ^= c == '\'';
        !is_quoted && if has_semicolons { c == ';' } else { c.is_whitespace() }
    });
    let parts = parts.map(str::trim).filter(|part| !part.is_empty());
    // a text with anything else in it is something else
    let pairs: Option<Vec<(&str, &str)>> = parts.map(|part| part.split_once('=')).collect();
    let pairs = pairs.unwrap_or_default();
    let is_place = |(name, _): &(&str, &str)| PLACES.iter().any(|place| place.eq_ignore_ascii_case(name.trim()));
    if !pairs.iter().any(is_place) {
        return Vec::new();
    }
    let clean = |(name, value): (&str, &str)| {
        (name.trim().replace(' ', "_"), value.trim().trim_matches(['\'', '"']).to_owned())
    };
    pairs.into_iter().map(clean).collect()
}

/// A part of a query without its percent-encoding; a plus is a blank.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let byte = digit(0).zip(digit(1)).and_then(|(high, low)| u8::try_from(16 * high + low).ok());
        let (byte, taken) = match (first, byte) {
            (b'%', Some(byte)) => (byte, 2),
            (b'+', _) => (b' ', 0),
            _ => (first, 0),
        };
        bytes.push(byte);
        rest = &after[taken..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<(String, String)> {
        parameters(text)
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_url_sets_is_found_whatever_names_its_driver_and_whatever_stands_around_it() {
        let app = pairs(&[("a", "b"), ("search_path", "app")]);
        for text in [
            "postgres://u:p@h:1/d?a=b&search_path=app",
            "postgresql://h/d?a=b&search_path=app",
            "postgresql+psycopg://h/d?a=b&search_path=app",
            "jdbc:postgresql://h/d?a=b&search_path=app",
            "jdbc:postgresql:d?a=b&search_path=app",
            "r2dbc:pool:postgresql://h/d?a=b&search_path=app",
            "-Dspring.datasource.url=jdbc:postgresql://h/d?a=b&search_path=app",
            "exec app --url 'postgres://h/d?a=b&search_path=app' --role=admin",
            "exec app --url postgres://h/d?a=b&search_path=app --role=admin",
            "{\"url\": \"postgis://h/d?a=b&search_path=app\", \"c\": \"d?e=f\"}",
            "postgres://h/d?%61=b&search%5Fpath=app",
        ] {
            assert_eq!(of(text), app, "{text}");
        }
        assert_eq!(of("postgres://u:what?ever@h/d?c=d"), pairs(&[("ever@h/d", ""), ("c", "d")]));
        let encoded = "postgres://h/d?options=-c%20search_path%3Da%2Cb+-c%20jit=%zz%";
        assert_eq!(of(encoded), pairs(&[("options", "-c search_path=a,b -c jit=%zz%")]));
        for text in ["", "postgres", "postgres://h/d", "https://h/?a=b", "mypostgresql:d?a=b", "größe=1?postgres"] {
            assert_eq!(of(text), Vec::new(), "{text}");
        }
    }

    #[test]
    fn what_a_connection_string_of_words_sets_is_found_and_other_words_are_none() {
        let libpq = "host=127.0.0.1 options='-c jit=off -c role=a' search_path=app";
        let told = [("host", "127.0.0.1"), ("options", "-c jit=off -c role=a"), ("search_path", "app")];
        assert_eq!(of(libpq), pairs(&told));
        let dotnet = "Host=127.0.0.1;Search Path=app;";
        assert_eq!(of(dotnet), pairs(&[("Host", "127.0.0.1"), ("Search_Path", "app")]));
        for text in ["search_path=app", "host=db; role=admin; psql", "run host=a role=b", "a b", ";", "'"] {
            assert_eq!(of(text), Vec::new(), "{text}");
        }
    }
}
