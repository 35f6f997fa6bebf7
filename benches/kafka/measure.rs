//! Time, processor time and memory of this process; quantiles.

use std::time::{Duration, Instant};

/// User and system time used so far, in seconds.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn peak_memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
}

/// What one run cost.
#[derive(Clone, Copy)]
pub struct Cost {
    pub seconds: f64,
    pub cpu: f64,
    pub peak_mib: f64,
}

impl Cost {
    /// Runs something that says how much of its time is not to be counted.
    pub fn of(run: impl FnOnce() -> Duration) -> Self {
        // Forgets the peak so far.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let (began, cpu) = (Instant::now(), cpu_seconds());
        let not_counted = run();
        Self {
            seconds: began.elapsed().saturating_sub(not_counted).as_secs_f64(),
            cpu: cpu_seconds() - cpu,
            peak_mib: peak_memory_mib(),
        }
    }

    pub fn print(&self, name: &str, records: usize) {
        println!(
            "{name:<28} {:>9.0} records/s   {:>5.2} CPU s per million   {:>5.0} MiB peak",
            records as f64 / self.seconds,
            self.cpu / (records as f64 / 1e6),
            self.peak_mib,
        );
    }
}

/// The value below which so many of a thousand lie.
pub fn quantile(sorted: &[f64], per_mille: usize) -> f64 {
    sorted[(sorted.len() * per_mille / 1000).min(sorted.len() - 1)]
}
