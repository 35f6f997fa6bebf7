//! The node with a wasm identity, in one lane unless told otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coproc::core::deployment::{BatchPolicy, Delivery};
use coproc::core::names::TopicName;
use coproc::ports::Log;

use super::support::{Rig, deployment, identity, identity_of};

/// A node that runs the identity from `from` to `to`, in a pool of its own.
pub struct Running {
    rig: Rig,
    name: String,
    began: Instant,
}

impl Running {
    /// Deploys, then starts the node.
    pub fn start(
        log: &Arc<dyn Log>,
        from: &TopicName,
        to: &TopicName,
        delivery: Delivery,
        batch: &BatchPolicy,
        lanes: u16,
    ) -> Self {
        let began = Instant::now();
        let name = to.to_string();
        let mut rig = Rig::on(log.clone(), &name, 1);
        let digest = rig.upload(&identity());
        let mut wanted = deployment(&[digest], from.as_str(), &[to.as_str()], "");
        wanted.policies.delivery = delivery;
        wanted.policies.batch = *batch;
        wanted.policies.parallelism = lanes;
        rig.put(&name, &wanted);
        rig.start();
        Self { rig, name, began }
    }

    /// Waits until so many records are committed: how long it took from the beginning to the first commit.
    pub fn wait_for(&self, records: usize) -> Duration {
        let began = self.began;
        let mut first = None;
        loop {
            let done = self.committed();
            if done > 0 && first.is_none() {
                first = Some(began.elapsed());
            }
            if done >= records as u64 {
                return first.unwrap_or_default();
            }
            assert!(began.elapsed() < Duration::from_mins(5), "{done} of {records} records");
            // Asking costs: it renders every metric.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn committed(&self) -> u64 {
        let text = self.rig.node.as_ref().unwrap().metrics().text();
        let of_ours = |line: &&str| line.starts_with("coproc_records_in_total{") && line.contains(&self.name);
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter(of_ours).filter_map(value).sum::<f64>() as u64
    }

    /// What the lane did all the time.
    pub fn account(&self) -> String {
        let text = self.rig.node.as_ref().unwrap().metrics().text();
        let of = |metric: &str| {
            let line = text.lines().find(|line| line.starts_with(metric) && line.contains(&self.name));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_default()
        };
        let commits = of("coproc_commit_seconds_count{");
        format!(
            "{commits} commits, {:.1} ms each, {:.2} s in all; in the guest {:.2} s",
            of("coproc_commit_seconds_sum{") / commits * 1e3,
            of("coproc_commit_seconds_sum{"),
            of("coproc_guest_seconds_total{"),
        )
    }

    /// Stops the node and removes the deployment.
    pub fn stop(mut self) {
        self.rig.node.take().unwrap().stop();
        self.rig.writer().remove(&identity_of(&self.name)).unwrap();
    }
}
