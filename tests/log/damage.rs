//! Damaged files: an error, or the right data; never wrong data, never less without a word.

use std::path::{Path, PathBuf};

use coproc::log::EmbeddedLog;
use coproc::ports::{Keyed, Log, LogError, Produce, TopicConfig};

use crate::support::{create, open, options, read_all, record, topic};

/// Files of a store with two topics, some of it in tables and some in the journal.
fn filled(dir: &Path) -> Vec<Vec<u8>> {
    let mut wanted = Vec::new();
    for round in 0..3u8 {
        let log = open(dir);
        if round == 0 {
            create(&*log, "a", TopicConfig::default());
            create(&*log, "c", TopicConfig::compacted());
        }
        for number in 0..20u8 {
            let value = vec![round * 20 + number; 700];
            let record = record(None, Some(std::str::from_utf8(&value).unwrap()));
            log.produce(&[Produce { topic: topic("a"), partition: None, record }]).unwrap();
            wanted.push(value);
        }
        let keyed = Keyed { key: vec![round], value: Some(vec![round; 10]) };
        log.fenced_writer(&topic("c"), "w").unwrap().write(&[keyed]).unwrap();
        if round == 1 {
            log.flush_tables().unwrap();
        }
    }
    wanted
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&file, &target).unwrap();
    }
}

/// Opens and reads everything: the error, if there is one.
fn read(dir: &Path, wanted: &[Vec<u8>]) -> Option<LogError> {
    let attempt = || {
        let log = EmbeddedLog::open(dir, options())?;
        let mut reader = log.reader(&topic("a"), None, coproc::ports::ReadFrom::Start)?;
        let mut found = Vec::new();
        while !reader.is_caught_up()? {
            found.extend(reader.fetch(crate::support::LONG)?);
        }
        let keyed = {
            let mut reader = log.reader(&topic("c"), None, coproc::ports::ReadFrom::Start)?;
            let mut found = Vec::new();
            while !reader.is_caught_up()? {
                found.extend(reader.fetch(crate::support::LONG)?);
            }
            found
        };
        let values: Vec<_> = found.into_iter().map(|fetched| fetched.record.value.unwrap()).collect();
        assert!(values == wanted, "wrong data: {} of {} records", values.len(), wanted.len());
        assert_eq!(keyed.len(), 3);
        Ok(())
    };
    attempt().err()
}

fn harm(name: &str, harm: impl Fn(&mut Vec<u8>, usize)) {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path());
    assert!(read(dir.path(), &wanted).is_none());
    let mut refused = 0;
    for file in files(dir.path()) {
        let path = file.strip_prefix(dir.path()).unwrap();
        if path.ends_with("lock") {
            continue;
        }
        for place in 0..6 {
            let harmed = tempfile::tempdir().unwrap();
            copy(dir.path(), harmed.path());
            let mut bytes = std::fs::read(&file).unwrap();
            // The journal is allocated ahead: what is written is at its start.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if used == 0 {
                continue;
            }
            harm(&mut bytes, used * place / 6);
            std::fs::write(harmed.path().join(path), &bytes).unwrap();
            match read(harmed.path(), &wanted) {
                None => {}
                Some(LogError::Corrupt(_) | LogError::BadConfig(_) | LogError::Storage(_)) => refused += 1,
                Some(other) => panic!("{name} of {} at {place}: {other:?}", path.display()),
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn flipped_bits() {
    harm("flip", |bytes, at| bytes[at] ^= 0x10);
}

#[test]
fn cut_files() {
    harm("cut", Vec::truncate);
}

#[test]
fn removed_files() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path());
    for file in files(dir.path()) {
        let path = file.strip_prefix(dir.path()).unwrap();
        // Without the note of what was acknowledged there is nothing to miss: that is how a user goes on.
        if path.ends_with("lock") || path.ends_with("acknowledged") {
            continue;
        }
        let harmed = tempfile::tempdir().unwrap();
        copy(dir.path(), harmed.path());
        std::fs::remove_file(harmed.path().join(path)).unwrap();
        if let Some(error) = read(harmed.path(), &wanted) {
            assert!(
                matches!(error, LogError::Corrupt(_) | LogError::Storage(_)),
                "{}: {error:?}",
                path.display()
            );
        }
    }
    assert_eq!(read_all(&*open(dir.path()), &topic("a")).len(), wanted.len());
}
