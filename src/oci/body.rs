//! Bodies of answers: where their pieces go, how fast they have to come, what an error's body says.

use std::time::Instant;

use crate::oci::config::Limits;
use crate::oci::error::OciError;

/// Takes the pieces of a body.
pub(super) trait BodySink {
    /// Forgets what came: the body is sent again from its start.
    fn restart(&mut self) -> Result<(), OciError>;
    /// The next piece.
    fn write(&mut self, piece: &[u8]) -> Result<(), OciError>;
}

impl BodySink for Vec<u8> {
    fn restart(&mut self) -> Result<(), OciError> {
        self.clear();
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), OciError> {
        self.extend_from_slice(piece);
        Ok(())
    }
}

/// The speed of a body, window by window.
pub(super) struct Window {
    since: Instant,
    bytes: u64,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }

    /// Counts a piece. `true` when a window has passed in which too little came.
    pub(super) fn is_too_slow(&mut self, more: u64, limits: &Limits) -> bool {
        self.bytes += more;
        let elapsed = self.since.elapsed();
        if elapsed < limits.speed_window {
            return false;
        }
        let speed = self.bytes as f64 / elapsed.as_secs_f64();
        *self = Self::new();
        speed < limits.bytes_per_second as f64
    }
}

/// The first message of the registry's error body, quoted: the text is the registry's, not ours.
pub(super) fn registry_words(body: &[u8]) -> String {
    let value: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = value.as_ref().and_then(|value| value["errors"][0]["message"].as_str());
    message.map_or_else(String::new, |text| format!(": {:?}", text.chars().take(200).collect::<String>()))
}
