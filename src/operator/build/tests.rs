//! Snapshots of what is built, and the promises that must hold whatever is in them.

use serde_json::{Value, json};

use super::rollout::{Rollout, decide, image};
use super::*;
use crate::operator::crd::pool::UpgradePolicy;

pub fn pool(change: &Value) -> ValidPool {
    let mut spec = json!({"kafka": {"bootstrapServers": ["kafka:9092"]}, "replicas": 3});
    if let (Some(spec), Some(change)) = (spec.as_object_mut(), change.as_object()) {
        spec.extend(change.clone());
    }
    ValidPool {
        installation: Installation::default_name(),
        namespace: "shop".parse().unwrap(),
        name: "default".parse().unwrap(),
        owner: OwnerReference {
            api_version: "coproc.dev/v1alpha1".into(),
            kind: "RuntimePool".into(),
            name: "default".into(),
            uid: "u".into(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        },
        spec: serde_json::from_value(spec).unwrap(),
        node_id_base: 1000,
        image: "coproc:0.1.0".into(),
        drain_seconds: 8,
        operator_version: "0.1.0".into(),
        restart: None,
    }
}

fn full() -> ValidPool {
    pool(&json!({
        "kafka": {"bootstrapServers": ["kafka:9093"], "config": {"client.rack": "a"},
            "tls": {"caSecret": {"name": "ca", "key": "ca.crt"}, "clientCertificateSecret": "client"},
            "sasl": {"mechanism": "SCRAM-SHA-512", "usernameSecret": {"name": "user", "key": "name"},
                "passwordSecret": {"name": "user", "key": "password"}}},
        "registry": {"pullSecrets": ["pull"], "mirrors": [{"registry": "a.example", "mirrors": ["b.example/a"]}],
            "insecure": ["plain.example:5000"], "caSecrets": [{"name": "registry-ca", "key": "ca.crt"}],
            "privateHosts": ["plain.example"], "tokenHosts": ["auth.example"], "redirectHosts": ["blobs.example"]},
        "verification": {"publicKeySecret": {"name": "cosign", "key": "cosign.pub"}},
        "topics": {"inputs": ["shop-"], "create": true}, "maxLanes": 64, "secrets": ["extra"],
        "cache": {"storageClassName": "fast", "size": "2Gi"},
        "resources": {"limits": {"memory": "1Gi"}},
        "template": {"labels": {"team": "a"}, "nodeSelector": {"disk": "ssd"}, "priorityClassName": "high"}}))
}

fn check(name: &str, pool: &ValidPool) {
    let objects = objects(pool);
    let documents = [
        serde_yaml::to_string(&objects.service_account),
        serde_yaml::to_string(&objects.config_map),
        serde_yaml::to_string(&objects.service),
        serde_yaml::to_string(&objects.network_policy),
        serde_yaml::to_string(&objects.disruption_budget),
        serde_yaml::to_string(&objects.stateful_set),
    ];
    let found = documents.map(|document| format!("---\n{}", document.unwrap())).concat();
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/operator/build/snapshots").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &found).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{name} changed: pods would restart; UPDATE=1 rewrites\n{found}");
}

#[test]
fn snapshots() {
    check("plain.yaml", &pool(&json!({})));
    check("full.yaml", &full());
}

#[test]
fn pods_keep_to_the_restricted_profile_and_have_no_token() {
    for pool in [pool(&json!({})), full()] {
        let set = objects(&pool).stateful_set;
        let pod = set.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.automount_service_account_token, Some(false));
        let context = pod.security_context.unwrap();
        assert_eq!((context.run_as_non_root, context.run_as_user), (Some(true), Some(65532)));
        let container = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(container.read_only_root_filesystem, Some(true));
        assert_eq!(container.capabilities.unwrap().drop.unwrap(), ["ALL"]);
        assert_eq!(pod.termination_grace_period_seconds, Some(23));
    }
}

#[test]
fn no_secret_is_copied_anywhere_it_is_only_named() {
    let objects = objects(&full());
    let config = objects.config_map.data.unwrap()["node.yaml"].clone();
    assert!(config.contains("/etc/coproc/secrets/user/password"), "{config}");
    let volumes = objects.stateful_set.spec.unwrap().template.spec.unwrap().volumes.unwrap();
    let secrets: Vec<_> = volumes.into_iter().filter_map(|volume| volume.secret?.secret_name).collect();
    assert_eq!(secrets, ["ca", "client", "cosign", "extra", "pull", "registry-ca", "user"]);
}

#[test]
fn pods_change_with_their_pool_and_not_with_the_operator() {
    let before = objects(&pool(&json!({}))).stateful_set;
    let by_a_newer_operator = |change: Value| {
        let mut built =
            objects(&ValidPool { operator_version: "0.2.0".into(), ..pool(&change) }).stateful_set;
        built.spec.as_mut().unwrap().template.spec.as_mut().unwrap().enable_service_links = Some(true);
        built
    };
    let decided = |change: Value, policy| decide(by_a_newer_operator(change), Some(&before), policy);
    assert_eq!(decided(json!({}), UpgradePolicy::Manual), Rollout::KeepPods(Box::new(before.clone())));
    assert!(matches!(decided(json!({}), UpgradePolicy::Auto), Rollout::Apply(_)));
    assert!(matches!(decided(json!({"maxLanes": 5}), UpgradePolicy::Manual), Rollout::Apply(_)));
    let kept = decided(json!({"replicas": 5}), UpgradePolicy::Manual);
    assert!(matches!(&kept, Rollout::KeepPods(set) if set.spec.as_ref().unwrap().replicas == Some(5)));
    let first = decide(by_a_newer_operator(json!({})), None, UpgradePolicy::Manual);
    assert!(matches!(first, Rollout::Apply(_)));
    // The same version undoes what was changed by hand.
    let again = objects(&pool(&json!({}))).stateful_set;
    assert!(matches!(decide(again, Some(&before), UpgradePolicy::Manual), Rollout::Apply(_)));
}

#[test]
fn the_image_stays_until_somebody_asks_for_another() {
    let plain = pool(&json!({}));
    let before = objects(&plain).stateful_set;
    assert_eq!(image(&plain.spec, None, "coproc:0.2.0"), "coproc:0.2.0");
    assert_eq!(image(&plain.spec, Some(&before), "coproc:0.2.0"), "coproc:0.1.0");
    let named = pool(&json!({"image": "mine:1"}));
    assert_eq!(image(&named.spec, Some(&before), "coproc:0.2.0"), "mine:1");
    let auto = pool(&json!({"upgradePolicy": "Auto"}));
    assert_eq!(image(&auto.spec, Some(&before), "coproc:0.2.0"), "coproc:0.2.0");
}
