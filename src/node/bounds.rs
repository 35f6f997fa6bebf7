//! What a node leaves alone: deployments of others, and topics that its pool does not give out.
//!
//! The operator checks the same before it writes. The node checks for itself, because whoever may write to the control
//! topic need not have come by the operator.

use crate::core::deployment::Deployment;
use crate::core::names::{Identity, Installation, Namespace, TopicName};

/// Whose deployments a node runs, and what they may bind. By default everybody's, and anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bounds {
    /// The only namespace, besides the command line's, whose deployments are run: two pools of one name may share a
    /// log, and each has credentials of its own.
    pub namespace: Option<Namespace>,
    /// Prefixes of the topics that may be read; all when empty.
    pub inputs: Vec<String>,
    /// Prefixes of the topics that may be written; all when empty.
    pub outputs: Vec<String>,
    /// Whether outputs that are missing are made.
    pub creates_outputs: bool,
}

impl Bounds {
    /// Whether a deployment of this pool is run here at all.
    pub fn includes(&self, installation: &Installation, identity: &Identity) -> bool {
        let is_near = |namespace: &Namespace| {
            identity.namespace == *namespace || identity.namespace.as_str() == Namespace::CLI
        };
        identity.installation == *installation && self.namespace.as_ref().is_none_or(is_near)
    }

    /// What a deployment binds that it must not, in words.
    pub fn problem(&self, deployment: &Deployment) -> Option<String> {
        let outputs = deployment.all_outputs();
        let of_inputs =
            first_outside(deployment.inputs().iter(), &self.inputs).map(|topic| (topic, "inputs"));
        let found = of_inputs
            .or_else(|| first_outside(outputs.iter(), &self.outputs).map(|topic| (topic, "outputs")));
        let (topic, which) = found?;
        Some(format!("{topic} is not among the {which} that this pool gives out: extend its topics.{which}"))
    }
}

fn first_outside<'a>(
    mut topics: impl Iterator<Item = &'a TopicName>,
    prefixes: &[String],
) -> Option<&'a TopicName> {
    let is_inside = |topic: &TopicName| prefixes.iter().any(|prefix| topic.as_str().starts_with(prefix));
    topics.find(|topic| !prefixes.is_empty() && !is_inside(topic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_own_deployments_and_those_of_the_command_line() {
        let installation = Installation::default_name();
        let of_shop = Bounds { namespace: Some("shop".parse().unwrap()), ..Bounds::default() };
        for (identity, is_in) in [
            ("default/shop/coprocessor/a", true),
            ("default/_cli/coprocessor/a", true),
            ("default/other/coprocessor/a", false),
            ("second/shop/coprocessor/a", false),
            ("second/_cli/coprocessor/a", false),
        ] {
            let identity: Identity = identity.parse().unwrap();
            assert_eq!(of_shop.includes(&installation, &identity), is_in, "{identity}");
            let is_of_installation = identity.installation == installation;
            assert_eq!(
                Bounds::default().includes(&installation, &identity),
                is_of_installation,
                "{identity}"
            );
        }
    }

    #[test]
    fn topics_outside_are_named() {
        let json = serde_json::json!({"schema": "1.0", "generation": 1, "owner": "cli",
            "source": {"type": "Kafka", "kafka": {"topics": ["shop-in"]}},
            "steps": [{"name": "main", "module": {"digest": format!("sha256:{}", "0".repeat(64))}}],
            "sinks": [{"type": "Kafka", "kafka": {"topic": "out"}}]});
        let deployment: Deployment = serde_json::from_value(json).unwrap();
        let check = |inputs: &[&str], outputs: &[&str]| {
            let all = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
            Bounds { inputs: all(inputs), outputs: all(outputs), ..Bounds::default() }.problem(&deployment)
        };
        assert_eq!(check(&[], &[]), None);
        assert_eq!(check(&["x", "shop-"], &["out"]), None);
        assert!(check(&["x"], &[]).unwrap().contains("shop-in is not among the inputs"));
        assert!(check(&[], &["x"]).unwrap().contains("out is not among the outputs"));
    }
}
