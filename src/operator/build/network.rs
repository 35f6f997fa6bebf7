//! The NetworkPolicy: nobody reaches the pods but for metrics and probes; egress is open unless listed.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{ValidPool, label_selector, metadata};

/// The policy of a pool's pods.
pub fn policy(pool: &ValidPool) -> NetworkPolicy {
    let listed = &pool.spec.network_policy.egress;
    let egress = if listed.is_empty() { vec![NetworkPolicyEgressRule::default()] } else { listed.clone() };
    NetworkPolicy {
        metadata: metadata(pool),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(label_selector(pool)),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: None,
                ports: Some(vec![NetworkPolicyPort {
                    port: Some(IntOrString::String("http".into())),
                    protocol: Some("TCP".into()),
                    end_port: None,
                }]),
            }]),
            egress: Some(egress),
        }),
    }
}
