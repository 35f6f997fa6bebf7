//! The StatefulSet: one pod per node id, stopped before its successor starts, so that a slot never has two.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, LocalObjectReference, ObjectFieldSelector, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile,
    SecretVolumeSource, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::node_config::{CACHE, SECRETS};
use super::{
    CONFIG_HASH, HTTP_PORT, RESTART, SPEC_HASH, VERSION, ValidPool, hash, label_selector, metadata,
    object_name, selector_labels,
};
use crate::operator::crd::RuntimePoolSpec;

/// The user that the image runs as.
const USER: i64 = 65532;
/// Seconds that the process gets beyond its drain deadline: closing clients, the last status record.
const GRACE_BEYOND_DRAIN: i64 = 15;
/// Name of the cache's volume.
const CACHE_VOLUME: &str = "cache";

/// The StatefulSet of a pool.
pub fn stateful_set(pool: &ValidPool, config: &str) -> StatefulSet {
    let mut metadata = metadata(pool);
    metadata.annotations = Some(BTreeMap::from([
        (SPEC_HASH.to_owned(), spec_hash(pool)),
        (VERSION.to_owned(), pool.operator_version.clone()),
    ]));
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(pool.spec.replicas),
            service_name: Some(object_name(&pool.name)),
            selector: label_selector(pool),
            pod_management_policy: Some("Parallel".into()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                ..StatefulSetUpdateStrategy::default()
            }),
            template: template(pool, config),
            volume_claim_templates: claims(&pool.spec),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

/// Hash of everything in a pool's specification that its pods depend on; the number of nodes is not among it.
pub fn spec_hash(pool: &ValidPool) -> String {
    let mut spec = pool.spec.clone();
    spec.replicas = 0;
    spec.image = None;
    hash(&(spec, &pool.restart, pool.node_id_base))
}

fn template(pool: &ValidPool, config: &str) -> PodTemplateSpec {
    let given = &pool.spec.template;
    let mut labels = given.labels.clone();
    labels.extend(selector_labels(&pool.name));
    let mut annotations = given.annotations.clone();
    annotations.insert(CONFIG_HASH.into(), hash(&config));
    if let Some(restart) = &pool.restart {
        annotations.insert(RESTART.into(), restart.clone());
    }
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(pool)),
    }
}

fn pod(pool: &ValidPool) -> PodSpec {
    let given = &pool.spec.template;
    let some = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
    let spread = given.topology_spread_constraints.clone().unwrap_or_else(|| spread(pool));
    let pull: Vec<_> =
        given.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect();
    PodSpec {
        service_account_name: Some(object_name(&pool.name)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(pool.drain_seconds + GRACE_BEYOND_DRAIN),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(pool)],
        volumes: Some(volumes(pool)),
        topology_spread_constraints: (!spread.is_empty()).then_some(spread),
        node_selector: some(&given.node_selector),
        tolerations: (!given.tolerations.is_empty()).then(|| given.tolerations.clone()),
        affinity: given.affinity.clone(),
        priority_class_name: given.priority_class_name.clone(),
        image_pull_secrets: (!pull.is_empty()).then_some(pull),
        ..PodSpec::default()
    }
}

fn container(pool: &ValidPool) -> Container {
    Container {
        name: "node".into(),
        image: Some(pool.image.clone()),
        args: Some(["node", "--config", "/etc/coproc/node.yaml"].map(str::to_owned).into()),
        env: Some(vec![
            from_field("COPROC_POD_INDEX", "metadata.labels['apps.kubernetes.io/pod-index']"),
            from_field("COPROC_INCARNATION", "metadata.uid"),
        ]),
        ports: Some(vec![ContainerPort {
            name: Some("http".into()),
            container_port: HTTP_PORT,
            ..ContainerPort::default()
        }]),
        resources: pool.spec.resources.clone(),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        // A long start is a long fold of the control topic, not a reason to begin again.
        startup_probe: Some(probe("/healthz", 5, 60)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        readiness_probe: Some(probe("/readyz", 5, 1)),
        volume_mounts: Some(mounts(&pool.spec)),
        ..Container::default()
    }
}

fn from_field(name: &str, path: &str) -> EnvVar {
    let field_ref = Some(ObjectFieldSelector { field_path: path.into(), ..ObjectFieldSelector::default() });
    EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource { field_ref, ..EnvVarSource::default() }),
        ..EnvVar::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("http".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// Over hosts and zones, as far as possible: a cluster of one machine still runs all nodes.
fn spread(pool: &ValidPool) -> Vec<TopologySpreadConstraint> {
    ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        .map(|key| TopologySpreadConstraint {
            max_skew: 1,
            topology_key: key.into(),
            when_unsatisfiable: "ScheduleAnyway".into(),
            label_selector: Some(label_selector(pool)),
            ..TopologySpreadConstraint::default()
        })
        .into()
}

/// Every Secret that the specification refers to: mounted as files, so that the kubelet brings changes.
pub fn secret_names(spec: &RuntimePoolSpec) -> BTreeSet<String> {
    let tls = spec.kafka.tls.iter();
    let of_tls = tls.flat_map(|tls| {
        tls.ca_secret.iter().map(|ca| ca.name.clone()).chain(tls.client_certificate_secret.clone())
    });
    let of_sasl = spec
        .kafka
        .sasl
        .iter()
        .flat_map(|sasl| [sasl.username_secret.name.clone(), sasl.password_secret.name.clone()]);
    let of_verification =
        spec.verification.iter().map(|verification| verification.public_key_secret.name.clone());
    let of_registries = spec.registry.ca_secrets.iter().map(|at| at.name.clone());
    let listed = spec.registry.pull_secrets.iter().chain(&spec.secrets).cloned();
    of_tls.chain(of_sasl).chain(of_verification).chain(of_registries).chain(listed).collect()
}

fn volume_name(i: usize) -> String {
    format!("secret-{i}")
}

fn volumes(pool: &ValidPool) -> Vec<Volume> {
    let config = Volume {
        name: "config".into(),
        config_map: Some(ConfigMapVolumeSource {
            name: object_name(&pool.name),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let scratch = Volume {
        name: "tmp".into(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity("64Mi".into())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    };
    let cache = pool.spec.cache.storage_class_name.is_none().then(|| Volume {
        name: CACHE_VOLUME.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity(pool.spec.cache.size.clone())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    });
    let secrets = secret_names(&pool.spec).into_iter().enumerate().map(|(i, name)| Volume {
        name: volume_name(i),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    [config, scratch].into_iter().chain(cache).chain(secrets).collect()
}

fn mounts(spec: &RuntimePoolSpec) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        // The API server drops `false`, and what is dropped would be applied again and again.
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let fixed = [
        mount("config", "/etc/coproc", true),
        mount("tmp", "/tmp", false),
        mount(CACHE_VOLUME, CACHE, false),
    ];
    let names = secret_names(spec).into_iter().enumerate();
    let secrets = names.map(|(i, name)| mount(&volume_name(i), &format!("{SECRETS}/{name}"), true));
    fixed.into_iter().chain(secrets).collect()
}

fn claims(spec: &RuntimePoolSpec) -> Option<Vec<PersistentVolumeClaim>> {
    let class = spec.cache.storage_class_name.clone()?;
    let requests = BTreeMap::from([("storage".to_owned(), Quantity(spec.cache.size.clone()))]);
    Some(vec![PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some(CACHE_VOLUME.into()), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: Some(class),
            resources: Some(VolumeResourceRequirements { requests: Some(requests), limits: None }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }])
}
