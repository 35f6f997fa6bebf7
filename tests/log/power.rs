//! The power fails: what was acknowledged is there, whole, after the file system recovered.
//!
//! The store lies on an ext4 file system of its own, in a file. In the middle of commits that file system is shut down
//! with the ioctl that file system developers test power failures with (`EXT4_IOC_SHUTDOWN` without a flush of its
//! journal): from that moment nothing reaches the device, neither dirty pages nor metadata that were not synced. Then
//! the process is gone, the file system is mounted anew, recovers its own journal, and the store is opened.
//!
//! What it proves: every acknowledged commit was handed to the device with a sync, in an order that survives, and what
//! the store finds where unsynced writes are missing it cuts or repairs. The test of `Flush` beside it loses commits,
//! which shows that the cut is a real one. What it does not prove: that the device keeps its word about a sync (its own
//! cache is not cut), nor anything of file systems that reorder or tear otherwise than ext4 does.
//!
//! Skipped where mounting is not allowed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use coproc::log::Durability;
use rustix::ioctl::{Setter, ioctl, opcode};

use crate::crash::{Later, check, run_and};

/// A file system in a file, unmounted when dropped.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

impl Disk {
    fn new(dir: &Path) -> Option<Self> {
        let disk = Self { image: dir.join("image"), at: dir.join("mounted") };
        File::create(&disk.image).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir(&disk.at).unwrap();
        let is_made = succeeds(Command::new("mkfs.ext4").arg("-q").arg(&disk.image));
        (is_made && disk.mount()).then_some(disk)
    }

    fn mount(&self) -> bool {
        succeeds(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    fn unmount(&self) -> bool {
        succeeds(Command::new("umount").arg(&self.at))
    }

    /// Nothing that was not synced reaches the device from now on.
    fn cut(&self) {
        /// `_IOR('X', 125, __u32)` of the kernel's `fs/ext4/ext4.h`.
        const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
        /// Without a flush of the file system's journal.
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.at).unwrap();
        #[expect(unsafe_code, reason = "the ioctl reads one u32, which is what it is given")]
        unsafe {
            ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)).unwrap();
        }
    }

    fn power_on(&self) {
        assert!(self.unmount() && self.mount(), "the file system recovers");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Cuts the power after so many acknowledged commits, again and again: the batches that were acknowledged and those
/// that are there.
fn rounds(durability: Durability) -> Option<Vec<(usize, usize)>> {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path()) else {
        eprintln!("skipped: making and mounting a file system is not allowed here");
        return None;
    };
    let store = disk.at.join("store");
    let round = |wanted| {
        // A sync that is under way when the file system is shut down may return success: ext4 asks whether the transaction
        // is still to be waited for, and an aborted one is not. After a real power cut nobody hears of that.
        let acknowledged = run_and(&store, wanted, None, durability, |_| {
            disk.cut();
            Later::Ignored
        });
        disk.power_on();
        let required = acknowledged.filter(|_| durability == Durability::Fsync);
        (acknowledged.map_or(0, |last| last + 1), check(&store, required))
    };
    Some([1, 2, 30, 7, 200, 3].into_iter().map(round).collect())
}

#[test]
fn what_was_acknowledged_after_a_sync_survives_a_power_cut() {
    let Some(rounds) = rounds(Durability::Fsync) else { return };
    println!("acknowledged and found: {rounds:?}");
    assert!(
        rounds.iter().all(|(acknowledged, found)| *acknowledged > 0 && found >= acknowledged),
        "{rounds:?}"
    );
}

#[test]
fn without_syncs_the_store_still_opens_and_holds_whole_batches() {
    let Some(rounds) = rounds(Durability::Flush) else { return };
    println!("acknowledged and found: {rounds:?}");
    assert!(
        rounds.iter().any(|(acknowledged, found)| found < acknowledged),
        "the cut is a real one: {rounds:?}"
    );
}
