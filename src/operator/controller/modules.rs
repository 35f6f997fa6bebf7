//! From images to modules: asks registries for what `resolution` says has to be asked for. Thin I/O.

use super::Error;
use super::deployment::Subject;
use crate::core::disposition::Disposition;
use crate::operator::context::Context;
use crate::operator::crd::RuntimePool;
use crate::operator::dereference;
use crate::operator::draft::DeploymentKind;
use crate::operator::resolution::{Failure, Known, Modules, Next, known_of, next};
use crate::operator::status::Progress;
use crate::operator::validate::{Resolved, Valid, Wanted};
use crate::operator::world::{Registry, ResolveError};

/// The modules of the resource's images, or why there are none.
pub(super) async fn resolve<K: DeploymentKind>(
    subject: &Subject<'_, K>,
    context: &Context,
    pool: &RuntimePool,
    valid: &Valid,
) -> Result<Result<Modules, Progress>, Error> {
    let before = context.known_modules(&subject.identity);
    // A pool that was just told to demand signatures names its keys in a moment, and comes back with that.
    let policy = pool.status.as_ref().and_then(|status| status.verification_policy.as_deref());
    let policy = policy.filter(|_| pool.spec.verification.is_some());
    let mut asker = Asker { subject, context, pool, registry: None };
    let mut found: Vec<Known> = Vec::new();
    for (i, wanted) in valid.wanted().iter().enumerate() {
        let now = context.world.clock.monotonic();
        let known = known_of(i, &wanted.image, &before, subject.object.status());
        let known = match next(wanted, known, policy, now) {
            Next::Keep(known) => Ok(known),
            Next::Ask => asker.ask(&wanted.image).await?.map(|resolved| Known::new(resolved, wanted, now)),
            Next::Verify(known) => asker.ask(&known.resolved.pinned).await?.map(|checked| {
                let resolved = Resolved { verified: checked.verified, ..known.resolved.clone() };
                Known { resolved, ..known }
            }),
            Next::AskAgain(known) => Ok(asker.ask_again(known, wanted).await?),
        };
        match known {
            Ok(known) => found.push(known),
            Err(error) => return Ok(Err(waiting(error))),
        }
    }
    context.remember_modules(&subject.identity, found.clone());
    let now = context.world.clock.monotonic();
    let due = found.iter().filter_map(|known| known.due).min();
    Ok(Ok(Modules {
        failure: found.iter().find_map(|known| known.failure.clone()),
        again: due.map(|due| due.saturating_sub(now)),
        resolved: found.into_iter().map(|known| known.resolved).collect(),
    }))
}

fn waiting(error: ResolveError) -> Progress {
    Progress::Waiting {
        reason: error.reason.into(),
        is_final: error.disposition == Disposition::User,
        message: error.message,
        is_resolved: false,
    }
}

struct Asker<'a, K> {
    subject: &'a Subject<'a, K>,
    context: &'a Context,
    pool: &'a RuntimePool,
    registry: Option<Registry>,
}

impl<K: DeploymentKind> Asker<'_, K> {
    /// Looks up a tag again. What is in force has time: it does not wait behind others for its turn.
    async fn ask_again(&mut self, known: Known, wanted: &Wanted) -> Result<Known, Error> {
        let now = self.context.world.clock.monotonic();
        if self.context.registry_calls.available_permits() == 0 {
            return Ok(known.postponed(now));
        }
        match self.ask(&wanted.image).await? {
            Ok(resolved) => {
                if resolved.digest != known.resolved.digest {
                    self.tell_moved(&known.resolved, &resolved).await;
                }
                Ok(Known::new(resolved, wanted, now))
            }
            Err(error) => {
                let message = format!("{}; the module that was resolved before goes on", error.message);
                let failure = Failure { reason: error.reason.into(), message };
                if known.failure.as_ref().is_none_or(|before| before.reason != failure.reason) {
                    let about = self.subject.object.object_ref(&());
                    self.context.event(&about, true, &failure.reason, &failure.message).await;
                }
                Ok(known.after(failure, error.disposition != Disposition::User, wanted, now))
            }
        }
    }

    async fn tell_moved(&self, before: &Resolved, now: &Resolved) {
        let note =
            format!("{} leads to module {} now, before to {}", now.image, now.digest, before.digest.short());
        let about = self.subject.object.object_ref(&());
        self.context.event(&about, false, "TagMoved", &note).await;
    }

    /// What an image leads to. Only an API server that does not answer is an error.
    async fn ask(&mut self, image: &str) -> Result<Result<Resolved, ResolveError>, Error> {
        let registry = match self.registry().await {
            Ok(registry) => registry.clone(),
            // The pool says so too. What runs goes on, and the Secret is looked for again.
            Err(Error::Dereference(missing @ dereference::Error::Missing { .. })) => {
                let (reason, message) = (dereference::SECRET_NOT_FOUND, missing.to_string());
                return Ok(Err(ResolveError { reason, message, disposition: Disposition::Transient }));
            }
            Err(error) => return Err(error),
        };
        let policy = registry.policy();
        let (turns, modules) = (&self.context.registry_calls, &self.context.world.modules);
        let answer = self.context.questions.ask(turns, modules, image, registry).await?;
        // Whatever the adapter says: without the key that is demanded there is no module.
        Ok(answer.and_then(|found| match (policy, &found.verified) {
            (Some(policy), verified) if verified.as_ref().is_none_or(|by| by.policy != policy) => {
                Err(ResolveError {
                    reason: "SignatureInvalid",
                    message: format!("nobody has looked at the signatures of {}", found.pinned),
                    disposition: Disposition::User,
                })
            }
            _ => Ok(found),
        }))
    }

    /// How the pool's registries are reached. Read when it is needed: Secrets change without a word.
    async fn registry(&mut self) -> Result<&Registry, Error> {
        if self.registry.is_none() {
            let namespace = self.subject.pool.namespace.as_str();
            let secrets = dereference::secrets(&self.context.client, namespace, &self.pool.spec).await?;
            self.registry = Some(dereference::registry(&self.pool.spec, &secrets)?);
        }
        Ok(self.registry.get_or_insert_default())
    }
}
