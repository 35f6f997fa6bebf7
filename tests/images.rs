//! From a registry to running modules, with everything real but the kubelet: an API server, Kafka, a registry, the
//! operator's program, and a node's program on the configuration that the operator wrote for it.
//!
//! The operator runs without the system's certificates: an image that has none works with a private authority.

#![cfg(all(feature = "cli", feature = "operator", feature = "kafka", feature = "oci"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]
#![allow(clippy::disallowed_methods, reason = "tests start processes and write to registries of their own")]
#![allow(dead_code, reason = "the fixtures are shared with other tests, which use the rest")]
#[path = "kafka/cluster.rs"]
mod brokers;
#[path = "operator/cluster.rs"]
mod cluster;
#[path = "images/command_line.rs"]
mod command_line;
#[path = "operator/memory.rs"]
mod memory;
#[path = "cli/place.rs"]
mod place;
#[path = "images/stage.rs"]
mod stage;
#[path = "oci/world.rs"]
mod world;

use std::time::Duration;

use serde_json::json;

use cluster::{condition, until};
use stage::{Stage, lower, mixed, upper};
use world::{Signer, sign_as_cosign};

/// What a resource shows of its module.
fn digest(object: &serde_json::Value) -> String {
    object["status"]["module"]["digest"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_is_followed_as_the_policy_says_and_rolled_back_by_digest() {
    let mut at = Stage::new("tags", "tls-basic").await;
    let (first, second) = (at.push("redact:1", &upper()), at.push("redact:2", &lower()));
    at.pool(json!({})).await;
    at.start_node().await;

    // Applied by its tag: the status has the digest.
    let image = at.image("redact:1");
    at.deploy("shout", json!({"image": image})).await;
    let running = at.runs("shout", &first.digest).await;
    let module = &running["status"]["module"];
    assert_eq!(module["image"], json!(image));
    assert_eq!(module["pinnedImage"], json!(format!("{image}@{}", first.manifest)));
    assert_eq!(condition(&running, "ModuleResolved")["status"], "True");
    at.gives("no1", "NO1").await;

    // The tag is moved: nothing changes, not even when the resource does.
    at.push("redact:1", &lower());
    at.deploy_with("shout", json!({"image": image}), json!({"description": "another text"})).await;
    let same = at.runs("shout", &first.digest).await;
    assert_eq!(same["status"]["observedGeneration"], 2);
    at.gives("no2", "NO2").await;

    // The policy says so: the new digest is swapped in, without a new generation.
    at.deploy("shout", json!({"image": image, "resolve": {"policy": "Interval", "interval": "10s"}})).await;
    let swapped = at.runs("shout", &second.digest).await;
    assert_eq!(swapped["status"]["observedGeneration"], 3);
    at.gives("NO3", "no3").await;
    // And again, now that the generation is the same from beginning to end.
    at.push("redact:1", &mixed());
    let moved = at.runs("shout", &world::digest_of(&mixed()).to_string()).await;
    assert_eq!(moved["status"]["observedGeneration"], 3);
    at.gives("no4", "nO4").await;
    assert!(at.events("shout").await.iter().any(|event| event == "TagMoved"));

    // A tag that leads nowhere, and a registry that is away: what runs goes on, and the condition says why.
    at.delete_tag("redact:1");
    at.unresolved("shout", "ImageNotFound").await;
    at.registry_stops();
    at.unresolved("shout", "RegistryUnavailable").await;
    at.gives("no5", "nO5").await;
    at.restart_node().await;
    at.gives("no6", "nO6").await;
    at.deploy_to("new", json!({"image": at.image("redact:2")}), "out-new").await;
    let pending = at.reason("new", "RegistryUnavailable").await;
    assert_eq!(condition(&pending, "Ready")["status"], "False");
    at.registry_starts();
    at.runs("new", &second.digest).await;

    // Back to the first version by its digest.
    at.deploy("shout", json!({"image": at.image(&format!("redact@{}", first.manifest))})).await;
    at.runs("shout", &first.digest).await;
    at.gives("no7", "NO7").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_signed_does_not_run() {
    let mut at = Stage::new("signed", "plain").await;
    let (good, wrong) = (Signer::new(1), Signer::new(2));
    at.secret("cosign", &[("cosign.pub", &good.pem())]).await;
    at.pool(json!({"verification": {"publicKeySecret": {"name": "cosign", "key": "cosign.pub"}}})).await;
    at.start_node().await;

    // Unsigned: no control record, and the condition says why.
    let pushed = at.push("redact:1", &upper());
    at.deploy("shout", json!({"image": at.image("redact:1")})).await;
    let refused = at.reason("shout", "SignatureInvalid").await;
    for kind in ["ModuleResolved", "SignatureVerified", "Deployed"] {
        assert_eq!(condition(&refused, kind)["status"], "False", "{kind}: {refused}");
    }
    assert_eq!(condition(&refused, "Stalled")["status"], "True");
    assert!(condition(&refused, "Ready")["message"].as_str().unwrap().contains("not signed"));
    assert!(at.control("shout").is_none(), "nothing is deployed");

    // Signed by somebody else.
    sign_as_cosign(at.address(), "redact", &wrong, pushed.manifest, pushed.manifest);
    at.touch("shout", "wrongly signed").await;
    until("the message names the key", Duration::from_secs(30), async || {
        let refused = at.reason("shout", "SignatureInvalid").await;
        let message = condition(&refused, "Ready")["message"].as_str().unwrap().to_owned();
        message.contains("not by a key of the policy").then_some(())
    })
    .await;
    assert!(at.control("shout").is_none(), "nothing is deployed");

    // Signed: the record is there, it runs, and the status says by whom.
    sign_as_cosign(at.address(), "redact", &good, pushed.manifest, pushed.manifest);
    at.touch("shout", "signed").await;
    let running = at.runs("shout", &pushed.digest).await;
    let verified = condition(&running, "SignatureVerified");
    assert_eq!((&verified["status"], &verified["reason"]), (&json!("True"), &json!("Verified")));
    let signer = running["status"]["module"]["verification"]["key"].as_str().unwrap();
    assert!(signer.starts_with("cosign.pub (") && verified["message"].as_str().unwrap().contains(signer));
    assert!(at.control("shout").is_some());
    at.gives("one", "ONE").await;

    // A tag that moves to what nobody signed: the signed module goes on.
    at.deploy(
        "shout",
        json!({"image": at.image("redact:1"), "resolve": {"policy": "Interval", "interval": "10s"}}),
    )
    .await;
    at.push("redact:1", &lower());
    at.unresolved("shout", "SignatureInvalid").await;
    at.gives("two", "TWO").await;

    // Whoever writes a record past the operator: the node asks for the signature itself.
    let unsigned = at.push("redact:unsigned", &mixed());
    at.stop_operator();
    at.forge("forged", "shout", &unsigned, "out-forged");
    let told = until("the node refuses the forged record", Duration::from_mins(1), async || {
        at.node_reason("forged")
    })
    .await;
    assert_eq!(told, "SignatureRejected");
    at.start_operator();

    // Another key: what it does not vouch for is not deployed any more, and not started by a node.
    at.secret("cosign", &[("cosign.pub", &wrong.pem())]).await;
    at.touch_pool().await;
    at.reason("shout", "SignatureInvalid").await;
    at.restart_node().await;
    until("the node refuses what ran before", Duration::from_mins(1), async || {
        at.node_reason("shout").filter(|reason| reason == "SignatureRejected")
    })
    .await;
}
