//! A condition on one measurement, in the words of Argo Rollouts: `result < 0.05`, `result[0] >= 0.95 && result[0] <= 1`.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest condition in bytes, and the deepest nesting.
const LONGEST: usize = 256;
const DEEPEST: usize = 16;

/// A condition that parsed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ResultCondition {
    /// Two terms compared.
    Compare(Term, Relation, Term),
    /// All of them.
    And(Box<ResultCondition>, Box<ResultCondition>),
    /// One of them.
    Or(Box<ResultCondition>, Box<ResultCondition>),
    /// Not this.
    Not(Box<ResultCondition>),
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Term {
    /// The value of the only series of the measurement.
    Measured,
    /// A number.
    Number(f64),
}

/// How two terms are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
    /// `==`
    Equal,
    /// `!=`
    Unequal,
}

/// Why a condition does not parse.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("at character {position}: {problem}")]
pub struct ResultConditionError {
    /// Where, from 1.
    pub position: usize,
    /// What is wrong there.
    pub problem: String,
}

impl ResultCondition {
    /// Reads a condition.
    ///
    /// # Errors
    /// [`ResultConditionError`] with the position of the first character that cannot be.
    pub fn parse(text: &str) -> Result<Self, ResultConditionError> {
        if text.len() > LONGEST {
            let problem = format!("the condition is longer than {LONGEST} bytes");
            return Err(ResultConditionError { position: LONGEST + 1, problem });
        }
        let mut reader = Reader { text, at: 0 };
        let condition = reader.any(0)?;
        match reader.peek() {
            None => Ok(condition),
            Some(_) => Err(reader.wrong("expected && or || or the end")),
        }
    }

    /// Whether it holds of a finite value.
    pub fn holds(&self, value: f64) -> bool {
        match self {
            Self::Compare(left, relation, right) => relation.holds(left.value(value), right.value(value)),
            Self::And(left, right) => left.holds(value) && right.holds(value),
            Self::Or(left, right) => left.holds(value) || right.holds(value),
            Self::Not(inner) => !inner.holds(value),
        }
    }
}

impl Term {
    fn value(self, measured: f64) -> f64 {
        match self {
            Self::Measured => measured,
            Self::Number(number) => number,
        }
    }
}

impl Relation {
    const ALL: [(&'static str, Self); 6] = [
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("==", Self::Equal),
        ("!=", Self::Unequal),
        ("<", Self::Less),
        (">", Self::More),
    ];

    #[allow(clippy::float_cmp)] // what the user wrote
    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::More => left > right,
            Self::AtLeast => left >= right,
            Self::Equal => left == right,
            Self::Unequal => left != right,
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&mut self) -> Option<char> {
        self.at += self.rest().len() - self.rest().trim_start().len();
        self.rest().chars().next()
    }

    fn take(&mut self, word: &str) -> bool {
        self.peek();
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn wrong(&mut self, problem: &str) -> ResultConditionError {
        let found = match self.peek() {
            Some(found) => format!("{problem}, found {found:?}"),
            None => format!("{problem}, found the end"),
        };
        let position = self.text.get(..self.at).unwrap_or_default().chars().count() + 1;
        ResultConditionError { position, problem: found }
    }

    fn any(&mut self, depth: usize) -> Result<ResultCondition, ResultConditionError> {
        let mut left = self.all(depth)?;
        while self.take("||") {
            left = ResultCondition::Or(Box::new(left), Box::new(self.all(depth)?));
        }
        Ok(left)
    }

    fn all(&mut self, depth: usize) -> Result<ResultCondition, ResultConditionError> {
        let mut left = self.one(depth)?;
        while self.take("&&") {
            left = ResultCondition::And(Box::new(left), Box::new(self.one(depth)?));
        }
        Ok(left)
    }

    fn one(&mut self, depth: usize) -> Result<ResultCondition, ResultConditionError> {
        if depth > DEEPEST {
            return Err(self.wrong("the condition is nested too deeply"));
        }
        if self.peek() == Some('!') {
            self.take("!");
            return Ok(ResultCondition::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.take("(") {
            let inner = self.any(depth + 1)?;
            return if self.take(")") { Ok(inner) } else { Err(self.wrong("expected )")) };
        }
        let left = self.term()?;
        let relation = Relation::ALL.into_iter().find(|(word, _)| self.take(word));
        let (_, relation) = relation.ok_or_else(|| self.wrong("expected one of < <= > >= == !="))?;
        Ok(ResultCondition::Compare(left, relation, self.term()?))
    }

    fn term(&mut self) -> Result<Term, ResultConditionError> {
        if self.take("result") {
            if self.take("[") && !(self.take("0") && self.take("]")) {
                return Err(self.wrong("a measurement has one series: write result or result[0]"));
            }
            return Ok(Term::Measured);
        }
        self.peek();
        let digits = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
        let length = self.rest().find(|c| !digits(c)).unwrap_or(self.rest().len());
        let number = self.rest().get(..length).and_then(|word| word.parse::<f64>().ok());
        match number.filter(|number| number.is_finite()) {
            Some(number) => {
                self.at += length;
                Ok(Term::Number(number))
            }
            None => Err(self.wrong("expected result or a number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_as_they_read() {
        for (text, value, holds) in [
            ("result < 0.05", 0.04, true),
            ("result < 0.05", 0.05, false),
            ("result <= 0.05", 0.05, true),
            ("result[0] >= 0.95 && result[0] <= 1", 1.0, true),
            ("result[ 0 ] > 2 || result < 1", 1.5, false),
            ("!(result == 3) && 1e1 != result", 4.0, true),
            ("-1.5 < result", -1.0, true),
            ("result==0", -0.0, true),
            ("result < 1 || result > 2 && result < 3", 0.5, true),
        ] {
            assert_eq!(ResultCondition::parse(text).expect(text).holds(value), holds, "{text} of {value}");
        }
    }

    #[test]
    fn what_does_not_parse_is_told_with_its_position() {
        for (text, position, words) in [
            ("", 1, "expected result or a number, found the end"),
            ("result", 7, "expected one of <"),
            ("result < ", 10, "found the end"),
            ("result < x", 10, "found 'x'"),
            ("result < 1 and result > 2", 12, "expected && or || or the end"),
            ("result[1] < 2", 8, "one series"),
            ("(result < 1", 12, "expected )"),
            ("result < 1e999", 10, "a number"),
            ("résult < 1", 1, "expected result"),
            ("result ≤ 1", 8, "expected one of <"),
        ] {
            let error = ResultCondition::parse(text).expect_err(text);
            assert_eq!(error.position, position, "{text}: {error}");
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
        assert!(ResultCondition::parse(&"!".repeat(30)).expect_err("deep").to_string().contains("nested too deeply"));
        assert!(ResultCondition::parse(&" ".repeat(300)).is_err());
    }
}
