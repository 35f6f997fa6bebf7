//! One reader, fold or writer of another process.

use std::sync::Arc;
use std::time::Duration;

use super::convert;
use super::generated as wire;
use crate::ports::{FencedWriter, Fold, Log, LogError, Reader};

use wire::session_reply::Kind as Reply;
use wire::session_request::Kind as Ask;

/// Longest time that one call waits: the other side asks again. It bounds how long a server takes to stop.
pub const MAX_WAIT: Duration = Duration::from_secs(1);

/// What the session opened.
enum Open {
    Nothing,
    Reader(Box<dyn Reader>),
    Fold(Box<dyn Fold>),
    Writer(Box<dyn FencedWriter>),
}

/// A session.
pub struct Session {
    log: Arc<dyn Log>,
    open: Open,
}

impl Session {
    /// A session that has nothing open yet.
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self { log, open: Open::Nothing }
    }

    /// Answers a request. Blocks.
    pub fn answer(&mut self, request: wire::SessionRequest) -> wire::SessionReply {
        let kind = match self.work(request) {
            Ok(reply) => reply,
            Err(error) => Reply::Error(convert::error_out(&error)),
        };
        wire::SessionReply { kind: Some(kind) }
    }

    fn work(&mut self, request: wire::SessionRequest) -> Result<Reply, LogError> {
        let request = request.kind.ok_or_else(|| convert::missing("request"))?;
        match (request, &mut self.open) {
            (Ask::OpenReader(open), Open::Nothing) => {
                let partitions = open.partitions.as_ref().map(|some| some.partitions.as_slice());
                let from = convert::from_in(open.from)?;
                let reader = self.log.reader(&convert::name(&open.topic)?, partitions, from)?;
                self.open = Open::Reader(reader);
                Ok(Reply::Done(wire::Empty {}))
            }
            (Ask::OpenFold(open), Open::Nothing) => {
                self.open = Open::Fold(self.log.fold(&convert::name(&open.topic)?)?);
                Ok(Reply::Done(wire::Empty {}))
            }
            (Ask::OpenWriter(open), Open::Nothing) => {
                let writer = self.log.fenced_writer(&convert::name(&open.topic)?, &open.id)?;
                self.open = Open::Writer(writer);
                Ok(Reply::Done(wire::Empty {}))
            }
            (Ask::Fetch(wait), Open::Reader(reader)) => {
                let records = reader.fetch(bounded(wait))?.iter().map(convert::fetched_out).collect();
                Ok(Reply::Fetched(wire::FetchReply { records }))
            }
            (Ask::IsCaughtUp(_), Open::Reader(reader)) => Ok(Reply::IsCaughtUp(reader.is_caught_up()?)),
            (Ask::Next(wait), Open::Fold(fold)) => {
                Ok(Reply::Event(convert::event_out(fold.next(bounded(wait))?)))
            }
            (Ask::Write(write), Open::Writer(writer)) => {
                let records: Vec<_> = write.records.into_iter().map(convert::keyed_in).collect();
                writer.write(&records)?;
                Ok(Reply::Done(wire::Empty {}))
            }
            _ => Err(LogError::BadConfig("the session has nothing open that could answer this".into())),
        }
    }
}

fn bounded(wait: wire::Wait) -> Duration {
    Duration::from_millis(wait.wait_ms).min(MAX_WAIT)
}
