//! The JSON that Prometheus answers with. An answer about many pods is taken in as it arrives, series by series, and is never in
//! memory as a whole; nothing is copied that is not kept.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use crate::contract::metrics as names;

/// The answer to an instant query.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
pub(super) struct QueryResponse<'a> {
    pub status: ResponseStatus,
    #[serde(default)]
    pub data: Option<ResponseData<'a>>,
    #[serde(default, rename = "errorType", borrow)]
    pub error_type: Cow<'a, str>,
    #[serde(default, borrow)]
    pub error: Cow<'a, str>,
    #[serde(default)]
    pub warnings: Vec<String>,
    /// How a cluster of VictoriaMetrics says that a part of its storage did not answer, without a warning.
    #[serde(default, rename = "isPartial")]
    pub is_partial: bool,
}

impl QueryResponse<'_> {
    /// The first warning that the answer may be partial.
    pub fn warning(&self) -> Option<&str> {
        partial(self.is_partial, &self.warnings)
    }
}

/// What an answer says about being partial, by its `isPartial` and its `warnings`. Some servers put their notes about the query
/// among the warnings.
pub(crate) fn partial(is_partial: bool, warnings: &[String]) -> Option<&str> {
    if is_partial {
        return Some("isPartial, a part of the storage did not answer");
    }
    warnings.iter().map(String::as_str).find(|warning| !warning.starts_with("PromQL info:"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ResponseStatus {
    Success,
    Error,
}

/// What a query yielded, by type.
#[derive(Debug, Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase", bound(deserialize = "'de: 'a"))]
pub(super) enum ResponseData<'a> {
    Vector(Vec<Series<'a>>),
    Scalar(#[serde(borrow)] Point<'a>),
    Matrix(IgnoredAny),
    String(IgnoredAny),
}

impl ResponseData<'_> {
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Vector(_) => "vector",
            Self::Scalar(_) => "scalar",
            Self::Matrix(_) => "matrix",
            Self::String(_) => "string",
        }
    }
}

/// One element of a vector, which has a value, or of a matrix, which has values. One that has neither is a native histogram.
#[derive(Debug, Deserialize)]
pub(super) struct Series<'a> {
    #[serde(borrow)]
    pub metric: Labels<'a>,
    #[serde(default, borrow)]
    pub value: Option<Point<'a>>,
    /// Time in Unix seconds and value as text, in the order of time.
    #[serde(default, borrow)]
    pub values: Vec<(f64, &'a str)>,
}

impl Series<'_> {
    /// Passes on the series that these bytes begin with, and says how many of them it is.
    pub fn first_of(bytes: &[u8], take: impl FnOnce(&Series)) -> Result<usize, serde_json::Error> {
        let mut elements = serde_json::Deserializer::from_slice(bytes).into_iter();
        match elements.next() {
            Some(series) => take(&series?),
            None => return Err(serde::de::Error::custom("a series is missing")),
        }
        Ok(elements.byte_offset())
    }
}

/// What a series begins with, before its labels.
const BEFORE_LABELS: &[u8] = b"{\"metric\":";

impl<'a> Labels<'a> {
    /// The labels of a series of which these bytes are the beginning; none where they are not there as a whole.
    pub fn of_begun(series: &'a [u8]) -> Option<Self> {
        let labels = series.strip_prefix(BEFORE_LABELS)?;
        serde_json::Deserializer::from_slice(labels).into_iter().next()?.ok()
    }
}

/// The labels of a series; empty where absent, as in Prometheus.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels<'a> {
    pub name: Cow<'a, str>,
    pub pool_namespace: Cow<'a, str>,
    pub pool: Cow<'a, str>,
    pub namespace: Cow<'a, str>,
    pub pod: Cow<'a, str>,
    pub job: Cow<'a, str>,
    pub instance: Cow<'a, str>,
    pub state: Cow<'a, str>,
    pub window: Cow<'a, str>,
    pub revision: Cow<'a, str>,
    pub slot: Cow<'a, str>,
    /// All others, in the order of the answer, which is the same for each series of a target.
    pub others: String,
}

/// Ends a label's name or value in [`Labels::others`]. Inside of a label it makes more of them than an honest series has, so
/// that it can only ever be taken for another forged one.
const END_OF_LABEL: char = '\u{1f}';

/// A text of the answer, borrowed unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Labels<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Labels<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the labels of a series")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut labels = Labels::default();
                while let Some((Text(name), Text(value))) = map.next_entry()? {
                    let label = match &*name {
                        "__name__" => &mut labels.name,
                        names::POOL_NAMESPACE => &mut labels.pool_namespace,
                        names::POOL => &mut labels.pool,
                        "namespace" => &mut labels.namespace,
                        "pod" => &mut labels.pod,
                        "job" => &mut labels.job,
                        "instance" => &mut labels.instance,
                        names::STATE => &mut labels.state,
                        names::WINDOW => &mut labels.window,
                        names::OF_REVISION => &mut labels.revision,
                        names::SLOT => &mut labels.slot,
                        _ => {
                            for part in [name, value] {
                                labels.others.push_str(&part);
                                labels.others.push(END_OF_LABEL);
                            }
                            continue;
                        }
                    };
                    *label = value;
                }
                Ok(labels)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// Time of the evaluation, which says nothing about the sample's, and the value as text.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Point<'a>(IgnoredAny, #[serde(borrow)] &'a str);

impl Point<'_> {
    /// The value, whatever number it is; None where it is none, and NaN and infinities as what they are.
    pub fn any_value(&self) -> Option<f64> {
        self.1.parse().ok()
    }

    /// The value, if it is one that a count or a time can have.
    pub fn value(&self) -> Result<f64, &str> {
        self.1.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0).ok_or(self.1)
    }
}

/// How deep in objects and arrays the elements of a result lie: below the answer, its data and the array.
const AROUND_AN_ELEMENT: u32 = 3;

/// Whether what follows this part of an answer is the result.
fn names_the_result(before: &[u8]) -> bool {
    let before = before.trim_ascii_end();
    before.strip_suffix(b":").is_some_and(|name| name.trim_ascii_end().ends_with(b"\"result\""))
}

/// Where in the texts of an answer a piece ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Quotes {
    #[default]
    Outside,
    Inside,
    /// After a backslash.
    Escaped,
}

/// Where in an answer a piece ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    /// Not in the array of the result.
    #[default]
    Around,
    /// In it, before an element.
    Result,
    /// In it, after an element: the comma that follows parts it from the next, and of both nothing is left.
    AfterElement,
    Element,
}

/// Cuts an answer that arrives in pieces into the elements of its result and the rest, which is an answer without elements.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    depth: u32,
    quotes: Quotes,
    part: Part,
    /// The beginning of an element that goes on in the next piece.
    begun: Vec<u8>,
    /// That one is passed over.
    is_passed_over: bool,
    rest: Vec<u8>,
}

impl Splitter {
    /// Takes in the next piece, and passes on each element that is whole with it. `each` is given bytes that begin with an element,
    /// and says how many of them it is. It may be given one again that it refused: with the bytes that the element is, and no more.
    /// Then what it says of it is what this returns.
    pub fn push<E>(&mut self, piece: &[u8], mut each: impl FnMut(&[u8]) -> Result<usize, E>) -> Result<(), E> {
        // what of this piece has found its place, and what is being looked at
        let (mut done, mut at) = (0, 0);
        while let Some(&byte) = piece.get(at) {
            match self.quotes {
                Quotes::Escaped => self.quotes = Quotes::Inside,
                Quotes::Inside => match piece[at..].iter().position(|byte| matches!(byte, b'"' | b'\\')) {
                    None => break,
                    Some(passed) => {
                        at += passed;
                        self.quotes = if piece[at] == b'"' { Quotes::Outside } else { Quotes::Escaped };
                    }
                },
                Quotes::Outside => {
                    if self.ends_an_element(byte) {
                        if !std::mem::take(&mut self.is_passed_over) {
                            self.begun.extend_from_slice(&piece[done..=at]);
                            each(&self.begun)?;
                        }
                        done = at + 1;
                        self.begun.clear();
                    } else if self.is_left_out(byte) {
                        self.rest.extend_from_slice(&piece[done..at]);
                        done = at + 1;
                    } else if self.opens_what_counts(byte) {
                        self.rest.extend_from_slice(&piece[done..at]);
                        done = at;
                        // who reads an element finds its end on the way; what is refused may only go on in the next piece
                        if byte == b'{'
                            && let Ok(length) = each(&piece[at..])
                        {
                            at += length;
                            done = at;
                            self.part = Part::AfterElement;
                            continue;
                        }
                    }
                    self.pass(byte);
                }
            }
            at += 1;
        }
        match self.part {
            Part::Element if self.is_passed_over => {}
            Part::Element => self.begun.extend_from_slice(&piece[done..]),
            _ => self.rest.extend_from_slice(&piece[done..]),
        }
        Ok(())
    }

    fn ends_an_element(&self, byte: u8) -> bool {
        self.part == Part::Element && byte == b'}' && self.depth == AROUND_AN_ELEMENT + 1
    }

    fn is_left_out(&self, byte: u8) -> bool {
        self.part == Part::AfterElement && byte == b','
    }

    /// Whether an element begins here, or what may be the array of the result.
    fn opens_what_counts(&self, byte: u8) -> bool {
        let element = byte == b'{' && self.depth == AROUND_AN_ELEMENT && self.part != Part::Around;
        element && self.part != Part::Element || byte == b'[' && self.depth + 1 == AROUND_AN_ELEMENT
    }

    /// Goes past a byte outside of texts; what comes before it has found its place where that matters.
    fn pass(&mut self, byte: u8) {
        match byte {
            b'"' => self.quotes = Quotes::Inside,
            b'{' | b'[' => {
                if self.depth == AROUND_AN_ELEMENT && byte == b'{' && self.part != Part::Around {
                    self.part = Part::Element;
                }
                self.depth = self.depth.saturating_add(1);
                if self.depth == AROUND_AN_ELEMENT {
                    let is_result = byte == b'[' && names_the_result(&self.rest);
                    self.part = if is_result { Part::Result } else { Part::Around };
                }
            }
            b'}' | b']' => {
                if self.ends_an_element(byte) {
                    self.part = Part::AfterElement;
                } else if self.part == Part::AfterElement {
                    self.part = Part::Result;
                }
                self.depth = self.depth.saturating_sub(1);
            }
            _ if byte.is_ascii_whitespace() => {}
            _ if self.part == Part::AfterElement => self.part = Part::Result,
            _ => {}
        }
    }

    /// The beginning of an element that goes on in the next piece; none where there is no such.
    pub fn begun(&self) -> Option<&[u8]> {
        (!self.begun.is_empty()).then_some(&self.begun)
    }

    /// Passes over the rest of the element that has begun, and forgets what has come of it.
    pub fn pass_over(&mut self) {
        self.begun = Vec::new();
        self.is_passed_over = true;
    }

    /// Bytes that are kept: those around the elements, and of an element that has not ended.
    pub fn kept(&self) -> usize {
        self.rest.len() + self.begun.len()
    }

    /// The answer without its elements, once all has arrived.
    pub fn rest(mut self) -> Vec<u8> {
        self.rest.append(&mut self.begun);
        self.rest
    }
}
