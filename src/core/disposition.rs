//! Whose fault an error is: one word that drives the retry, the dead letter and the metric label at once.

use std::fmt;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// Somebody has to change something: retrying alone does not help.
    User,
    /// The world around is not well: the same call may go through later.
    Transient,
    /// Another process took over this slot: give it up, do not fight.
    Fenced,
    /// Ours. Report it.
    Bug,
}

impl Disposition {
    /// The label value of metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Transient => "transient",
            Self::Fenced => "fenced",
            Self::Bug => "bug",
        }
    }
}

impl fmt::Display for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
