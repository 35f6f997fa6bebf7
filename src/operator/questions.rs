//! Questions to registries, once for all who ask the same: a thousand resources with one image are a few questions.
//!
//! No answer is older than its question: those who ask while a question waits for its turn share the answer, and
//! whoever comes once the registry is being asked has it asked again.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinError;

use crate::operator::validate::Resolved;
use crate::operator::world::{Modules, Registry, ResolveError};

type Answer = OnceCell<Result<Resolved, ResolveError>>;

/// Questions that wait for their turn.
#[derive(Debug, Default)]
pub struct Questions {
    waiting: Mutex<HashMap<(String, Registry), Arc<Answer>>>,
}

impl Questions {
    /// Asks what an image is, when there is a turn.
    pub async fn ask(
        &self,
        turns: &Semaphore,
        modules: &Arc<dyn Modules>,
        image: &str,
        registry: Registry,
    ) -> Result<Result<Resolved, ResolveError>, JoinError> {
        let question = (image.to_owned(), registry);
        let answer = self.waiting.lock().entry(question.clone()).or_default().clone();
        // Whoever is first asks; should it be cut off, the next one does.
        let asked = answer.get_or_try_init(|| async {
            // Never closed: there is always a turn to wait for.
            let _turn = turns.acquire().await;
            self.waiting.lock().remove(&question);
            let (modules, (image, registry)) = (modules.clone(), question.clone());
            tokio::task::spawn_blocking(move || modules.resolve(&image, &registry)).await
        });
        asked.await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::core::digest::Digest;
    use crate::core::disposition::Disposition;

    #[derive(Default)]
    struct Slow(AtomicUsize);

    impl Modules for Slow {
        fn check(&self, _: &Registry) -> Result<(), String> {
            Ok(())
        }

        fn resolve(&self, image: &str, _: &Registry) -> Result<Resolved, ResolveError> {
            let count = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            std::thread::sleep(Duration::from_millis(20));
            if image == "bad" {
                let message = format!("attempt {count}");
                return Err(ResolveError { reason: "Bad", message, disposition: Disposition::User });
            }
            let digest = Digest::from_bytes([0; 32]);
            Ok(Resolved { image: image.into(), pinned: count.to_string(), digest, verified: None })
        }
    }

    async fn ask(questions: &Questions, modules: &Arc<Slow>, turns: &Semaphore, image: &str) -> String {
        let modules: Arc<dyn Modules> = modules.clone();
        let answer = questions.ask(turns, &modules, image, Registry::default()).await.unwrap();
        answer.map_or_else(|error| error.message, |found| found.pinned)
    }

    #[tokio::test]
    async fn many_who_ask_the_same_are_one_question() {
        let (questions, modules, turns) = (Questions::default(), Arc::<Slow>::default(), Semaphore::new(0));
        let same = futures::future::join_all((0..100).map(|_| ask(&questions, &modules, &turns, "a")));
        let (same, ()) = tokio::join!(same, async { turns.add_permits(2) });
        assert!(same.iter().all(|answer| answer == "1"), "{same:?}");
        // Other images are other questions, and a failure is not remembered.
        ask(&questions, &modules, &turns, "b").await;
        assert_eq!(ask(&questions, &modules, &turns, "bad").await, "attempt 3");
        assert_eq!(ask(&questions, &modules, &turns, "bad").await, "attempt 4");
        assert!(questions.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn who_comes_while_the_registry_is_asked_has_it_asked_again() {
        let (questions, modules, turns) = (Questions::default(), Arc::<Slow>::default(), Semaphore::new(2));
        let late = async {
            while modules.0.load(Ordering::SeqCst) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            ask(&questions, &modules, &turns, "a").await
        };
        let (first, late) = tokio::join!(ask(&questions, &modules, &turns, "a"), late);
        assert_eq!((first.as_str(), late.as_str()), ("1", "2"));
    }
}
