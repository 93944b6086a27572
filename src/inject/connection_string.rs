//! PURE: the connection strings in a text, what they set and which hosts they name.
//!
//! Whoever may create a pod writes the text. So what is looked at is bounded, of a text and of each URL in it: a text of nothing but
//! beginnings of URLs would otherwise take time and memory by the square of its length.

/// Longest text that is looked into, in bytes. What is longer is a script or a document, and is looked into as far as that.
const LONGEST_TEXT: usize = 16 << 10;
/// Longest URL that is looked into, in bytes.
const LONGEST_URL: usize = 2 << 10;
/// Longest name of a driver in a URL, in bytes.
const LONGEST_DRIVER: usize = 64;
/// URLs of one scheme in a text.
const MOST_URLS: usize = 8;

/// Schemes of URLs. The name of a driver may follow: `postgresql+psycopg://`.
const SCHEMES: [&str; 4] = ["postgresql", "postgres", "postgis", "pgsql"];
/// One of them is in every connection string of words.
const PLACES: [&str; 5] = ["host", "hostaddr", "server", "dbname", "database"];

/// Settings that say where the server is.
const HOSTS: [&str; 6] = ["host", "hostaddr", "server", "address", "addr", "data_source"];

/// As much of a text as is looked into.
pub fn looked_into(text: &str) -> &str {
    beginning(text, LONGEST_TEXT)
}

fn beginning(text: &str, longest: usize) -> &str {
    &text[..text.floor_char_boundary(longest)]
}

/// The hosts that the connection strings of a text name, without their ports and as they are written.
pub fn hosts(text: &str) -> Vec<String> {
    let text = looked_into(text);
    let authorities = SCHEMES.iter().flat_map(|scheme| urls(text, scheme)).filter_map(|url| {
        let authority = url.strip_prefix("//")?.split(['/', '?', '#']).next()?;
        Some(authority.rsplit('@').next().unwrap_or(authority).to_owned())
    });
    let is_place = |name: &str| HOSTS.iter().any(|place| place.eq_ignore_ascii_case(name));
    let settings = parameters(text).into_iter().filter(|(name, _)| is_place(name)).map(|(_, value)| value);
    let all: Vec<String> = authorities.chain(settings).collect();
    let hosts = all.iter().flat_map(|hosts| hosts.split(',')).map(without_port);
    hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect()
}

/// A host without the port that may follow it.
pub fn without_port(host: &str) -> &str {
    if let Some(address) = host.strip_prefix('[') {
        return address.split(']').next().unwrap_or(address);
    }
    // an address of IPv6 has several colons
    host.split_once(':').filter(|(_, port)| !port.contains(':')).map_or(host, |(host, _)| host)
}

/// Names and values of all that the connection strings of a text set behind the place, without their encoding.
pub fn parameters(text: &str) -> Vec<(String, String)> {
    let text = looked_into(text);
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
    urls(text, scheme).into_iter().filter_map(|url| Some(url.split_once('?')?.1)).collect()
}

/// The URLs of one scheme: what follows the scheme and its colon.
fn urls<'t>(text: &'t str, scheme: &str) -> Vec<&'t str> {
    let first_blank = text.find(char::is_whitespace).unwrap_or(text.len());
    let url = |(at, word): (usize, &str)| {
        let (before, behind) = (&text[..at], beginning(&text[at + word.len()..], LONGEST_URL));
        let behind = match behind.strip_prefix('+') {
            Some(driver) => {
                let is_of_it = |c: char| c.is_ascii_alphanumeric() || c == '_';
                &driver[beginning(driver, LONGEST_DRIVER).find(|c| !is_of_it(c))?..]
            }
            None => behind,
        };
        // JDBC has a short form without a host
        let is_jdbc = before.ends_with("jdbc:");
        let url = behind.strip_prefix(':').filter(|url| is_jdbc || url.starts_with("//"))?;
        // a blank is the end of one that stands among other words
        let is_among_words = first_blank < at;
        let is_end = |c: char| matches!(c, '"' | '\'' | '`') || is_among_words && c.is_whitespace();
        url.split(is_end).next()
    };
    text.match_indices(scheme).filter_map(url).take(MOST_URLS).collect()
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
    fn the_hosts_that_a_text_names_are_found_in_every_kind_of_connection_string() {
        for (text, expected) in [
            ("postgres://u:p@pg-main:5432/d", &["pg-main"][..]),
            ("postgresql+psycopg://pg-main.db/d?sslmode=require", &["pg-main.db"]),
            ("jdbc:postgresql://a:1,b:2/d?user=u", &["a", "b"]),
            ("postgres://u:p%40x@[fd00::1]:5432/d", &["fd00::1"]),
            ("postgres:///d?host=pg-main&hostaddr=10.0.0.7", &["pg-main", "10.0.0.7"]),
            ("exec app --url 'postgres://pg-main/d' --role=admin", &["pg-main"]),
            ("host=pg-main hostaddr=10.0.0.7 dbname=d", &["pg-main", "10.0.0.7"]),
            ("Host=pg-main;Port=5432;Database=d", &["pg-main"]),
            ("", &[]),
            ("a sentence about pg-main", &[]),
            ("https://pg-main/metrics", &[]),
        ] {
            assert_eq!(hosts(text), expected, "{text}");
        }
        let alone =
            [("pg-main", "pg-main"), ("pg-main:5432", "pg-main"), ("fd00::7", "fd00::7"), ("[fd00::7]:1", "fd00::7")];
        for (text, expected) in alone {
            assert_eq!(without_port(text), expected);
        }
    }

    #[test]
    fn what_is_found_does_not_grow_by_the_square_of_a_text_of_nothing_but_urls() {
        let most = |urls: usize| {
            let text = "postgres://h/?a=b&".repeat(urls);
            (of(&text).len(), hosts(&text).len())
        };
        let (settings, of_hosts) = most(600);
        assert!(settings <= MOST_URLS * LONGEST_URL && of_hosts <= MOST_URLS, "{settings} and {of_hosts}");
        assert_eq!(most(1200), (settings, of_hosts), "a longer one is looked into as far as this");
        let long = format!("{}?c=d", "postgres://u@h/".repeat(500));
        assert_eq!(of(&long), Vec::new(), "nothing of a URL is looked for behind its bound");
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
