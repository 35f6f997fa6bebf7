//! What the intake makes of rebalances, without brokers.

use super::*;
use crate::core::deployment::{Delivery, StartOffset};
use crate::kafka::admin::Admin;

/// An intake whose brokers are nowhere.
fn intake(assignor: Assignor) -> Intake {
    let mut config = KafkaConfig::plain(["127.0.0.1:1"]);
    config.assignor = assignor;
    config.timing.transaction = Duration::from_millis(300);
    let spec = LaneSpec {
        group: "g".parse().unwrap(),
        transactional_id: "t".to_owned(),
        inputs: vec!["in".parse().unwrap()],
        outputs: Vec::new(),
        start: StartOffset::Earliest,
        delivery: Delivery::ExactlyOnce,
        max_records: 1,
        max_bytes: 1,
    };
    Intake::open(&config, &spec, Ends::new(Arc::new(Admin::open(&config).unwrap()))).unwrap()
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new(&"in".parse().unwrap(), partition)
}

#[test]
fn what_a_cooperative_group_gives_and_takes_before_an_answer_adds_up() {
    let mut intake = intake(Assignor::Cooperative);
    intake.given(vec![at(0), at(1)], Some(1));
    intake.given(vec![at(2)], Some(2));
    assert_eq!(intake.assigning, Some(vec![at(0), at(1), at(2)]));
    intake.asked_for(&[at(1)], Some(3));
    assert_eq!(intake.assigning, Some(vec![at(0), at(2)]), "another has it by then");
    assert_eq!(intake.revoking, Some(vec![at(1)]));
    assert_eq!((intake.generation, intake.is_owing, intake.is_confused()), (Some(3), true, false));
}

#[test]
fn an_eager_group_gives_all_or_takes_all() {
    let mut intake = intake(Assignor::Eager);
    intake.given(vec![at(0), at(1)], Some(1));
    intake.given(vec![at(2)], Some(2));
    assert_eq!((&intake.assigning, intake.generation), (&Some(vec![at(2)]), Some(2)));
    assert!(!intake.is_confused(), "nothing was taken over yet");
    intake.asked_for(&[at(2)], Some(3));
    assert_eq!((&intake.assigning, intake.generation), (&None, Some(2)));
    intake.slots.push(Slot::at((at(2), Place::At(0))));
    intake.given(vec![at(0)], Some(4));
    assert!(intake.is_confused(), "it was not asked for what it had");
}
