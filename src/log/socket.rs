//! (stub)
use crate::ports::{Log, LogError};
use std::path::Path;
use std::sync::Arc;
/// stub
pub fn open_or_connect(dir: &Path, options: crate::log::Options) -> Result<Arc<dyn Log>, LogError> {
    Ok(crate::log::EmbeddedLog::open(dir, options)?)
}
