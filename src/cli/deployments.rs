//! Which deployment a user means by a name.

use crate::cli::exit::{Exit, coded};
use crate::control::desired::DesiredState;
use crate::core::names::{DeploymentName, Identity, Installation, Kind, Namespace};

/// The deployment named by `name`: a name, `kind/name`, or a whole identity.
///
/// A plain name means the command line's own coprocessor first, then any deployment of that name; where there
/// are several, the user has to say which.
pub fn resolve(state: &DesiredState, installation: &Installation, name: &str) -> anyhow::Result<Identity> {
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        [name] => by_name(state, installation, &name.parse()?),
        [kind, name] => Ok(of_cli(installation, kind.parse()?, name.parse()?)),
        _ => Ok(name.parse()?),
    }
}

/// A deployment of the command line.
pub fn of_cli(installation: &Installation, kind: Kind, name: DeploymentName) -> Identity {
    Identity { installation: installation.clone(), namespace: Namespace::cli(), kind, name }
}

fn by_name(
    state: &DesiredState,
    installation: &Installation,
    name: &DeploymentName,
) -> anyhow::Result<Identity> {
    let named = state.iter().map(|(_, identity, _)| identity);
    let found: Vec<&Identity> =
        named.filter(|at| at.name == *name && at.installation == *installation).collect();
    let ours = of_cli(installation, Kind::Coprocessor, name.clone());
    match &found[..] {
        _ if found.contains(&&ours) => Ok(ours),
        [] => Err(coded(
            Exit::NotFound,
            format!("there is no coprocessor {name}: `coproc list` shows what runs"),
        )),
        [one] => Ok((*one).clone()),
        several => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            let names = names.join(", ");
            Err(coded(Exit::Usage, format!("{name} is the name of several deployments, say which: {names}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit;
    use crate::ports::FoldEvent;

    fn state(keys: &[&str]) -> DesiredState {
        let mut state = DesiredState::default();
        for key in keys {
            let value = Some(br#"{"schema":"9.0"}"#.to_vec());
            state.apply(FoldEvent::Record { key: key.as_bytes().to_vec(), value, offset: 0, appended_ms: 0 });
        }
        state
    }

    #[test]
    fn a_name_means_ours_first_and_is_never_guessed() {
        let state = state(&[
            "deployment/default/_cli/default/coprocessor/a",
            "deployment/default/shop/default/coprocessor/a",
            "deployment/default/shop/default/pipeline/b",
            "deployment/default/shop/default/pipeline/c",
            "deployment/default/farm/default/pipeline/c",
            "deployment/other/farm/default/pipeline/d",
        ]);
        for (name, found) in [
            ("a", Ok("default/_cli/coprocessor/a")),
            ("b", Ok("default/shop/pipeline/b")),
            ("default/shop/coprocessor/a", Ok("default/shop/coprocessor/a")),
            ("pipeline/x", Ok("default/_cli/pipeline/x")),
            ("c", Err(Exit::Usage)),
            ("d", Err(Exit::NotFound)),
            ("A", Err(Exit::Usage)),
        ] {
            let got = resolve(&state, &Installation::default_name(), name);
            let got = got.map(|identity| identity.to_string()).map_err(|error| exit::of(&error));
            assert_eq!(got, found.map(str::to_owned), "{name}");
        }
    }
}
