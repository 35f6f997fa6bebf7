//! `coproc deploy`: checks modules, stores their bytes, and writes the desired state.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::cli::arguments::{number, start_offset, variable};
use crate::cli::deployments::of_cli;
use crate::cli::exit::{Exit, coded};
use crate::cli::manifest::{self, Language, Manifest, StepFile};
use crate::cli::modules::Module;
use crate::cli::open::Target;
use crate::cli::output::{count, say};
use crate::cli::{modules, wait};
use crate::control::modules::upload;
use crate::control::writer::DesiredWriter;
use crate::core::deployment::{
    Delivery, Deployment, KafkaSink, KafkaSource, Limits, ModuleRef, Naming, OnExhausted, Owner, Policies,
    SCHEMA, Sink, Source, StartOffset, Step,
};
use crate::core::names::{DeploymentName, Kind, TopicName};
use crate::core::partitioner::Partitioner;
use crate::core::units::{ByteSize, Span};
use crate::ports::{Log, LogError};
use crate::wasm::section;

/// Deploy a coprocessor, or change one
///
/// Several modules are a chain: each reads what the one before wrote. A module is a file, or an image in a registry
/// (registry/name:tag): its tag is resolved to a digest now, and nodes fetch it by that. A module that `coproc build`
/// made says itself what it reads and writes; flags change that. Input and output topics have to exist.
/// A deployment of the same name is changed; what is only another module, variable or limit is swapped in
/// between two commits.
#[derive(Debug, Args)]
pub struct Command {
    /// Modules; several are the steps of a chain
    #[cfg_attr(not(feature = "oci"), arg(value_name = "FILE.wasm", required_unless_present = "file"))]
    #[cfg_attr(feature = "oci", arg(value_name = "FILE.wasm|IMAGE", required_unless_present = "file"))]
    modules: Vec<PathBuf>,
    /// Manifest to start from; flags change what it says
    #[arg(short, long, value_name = "coproc.yaml")]
    file: Option<PathBuf>,
    /// Name; the module's file name unless given
    #[arg(long)]
    name: Option<DeploymentName>,
    /// Topic to read; repeat it for more
    #[arg(short, long, value_name = "TOPIC", value_parser = TopicName::from_user)]
    input_topic: Vec<TopicName>,
    /// Topic to write; repeat it for more, the first is the default
    #[arg(short, long, value_name = "TOPIC")]
    output_topic: Vec<TopicName>,
    /// Variable of the guests' environment; repeat it for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    var: Vec<(String, String)>,
    /// What it is for
    #[arg(long)]
    description: Option<String>,
    /// Where it starts the first time: earliest, latest, @<milliseconds since 1970>, +<offsets>, -<offsets>
    #[arg(long, value_name = "POSITION", value_parser = start_offset, allow_hyphen_values = true)]
    from_offset: Option<StartOffset>,
    /// Output topics are materialized: named <input>._<output>_, with the input's partitions
    #[arg(long)]
    materialized: bool,
    /// Where records go that fail again and again; implies --on-exhausted dead-letter
    #[arg(long, value_name = "TOPIC")]
    dead_letter_topic: Option<TopicName>,
    /// What happens to a record that fails again and again
    #[arg(long, value_name = "ACTION")]
    on_exhausted: Option<OnExhaustedArg>,
    /// How often a failing record is tried again
    #[arg(long, value_name = "COUNT", value_parser = number::<u32>)]
    max_retries: Option<u32>,
    /// Number of lanes on each node
    #[arg(long, value_name = "LANES", value_parser = number::<u16>)]
    parallelism: Option<u16>,
    /// The guarantee
    #[arg(long, value_name = "GUARANTEE")]
    delivery: Option<DeliveryArg>,
    /// Largest memory of a guest
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Longest time for one record, and for the start
    #[arg(long, value_name = "DURATION")]
    time_per_record: Option<Span>,
    /// Most output for one record
    #[arg(long, value_name = "SIZE")]
    max_output: Option<ByteSize>,
    /// Longest time that processed records stay invisible
    #[arg(long, value_name = "DURATION")]
    commit_interval: Option<Span>,
    /// Do not check that the topics exist: the nodes wait for them
    #[arg(long)]
    no_topic_check: bool,
    /// Wait until every node that is up runs it, or one says why it does not
    #[arg(short, long)]
    wait: bool,
    /// The longest time to wait
    #[arg(long, value_name = "DURATION", default_value = "30s", requires = "wait")]
    timeout: Span,
    #[cfg(feature = "oci")]
    #[command(flatten)]
    registry: super::registry::RegistryArgs,
}

/// What happens to a record that fails again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnExhaustedArg {
    /// Its partition stops there and says so
    Fail,
    /// It is left out
    Skip,
    /// It goes to the dead-letter topic
    DeadLetter,
}

/// The guarantee.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeliveryArg {
    /// Exactly once, unless the log says explicitly that it cannot
    Auto,
    /// Exactly once, or not at all
    ExactlyOnce,
    /// At least once
    AtLeastOnce,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let given = self.modules.iter().map(|path| self.module(path)).collect::<Result<Vec<_>, _>>()?;
        let manifest = self.manifest(&given)?;
        let modules = if given.is_empty() { modules::read_all(&manifest.steps)? } else { given };
        // The topics that it needs are in a log: without one there is nothing to deploy to, unless they are to come.
        let log = if self.no_topic_check { target.log_or_new()? } else { target.log()? };
        let identity = of_cli(&target.installation, Kind::Coprocessor, manifest.name.clone());
        let deployment = deployment(&manifest, &modules);
        check(&deployment)?;
        if !self.no_topic_check {
            check_topics(log.as_ref(), &deployment)?;
        }
        for (module, step) in modules.iter().zip(&manifest.steps) {
            modules::check(module, &step.limits, &step.env)?;
        }
        // What comes from a registry stays there.
        for module in modules.iter().filter(|module| module.image.is_none()) {
            upload(log.as_ref(), &module.bytes)?;
        }
        let writer = DesiredWriter::new(log.as_ref(), target.installation.clone());
        let generation = writer.deploy(&target.pool, &identity, &deployment)?;
        let is_paused = writer.find(&identity).is_ok_and(|(_, deployed)| deployed.paused);
        let name = &identity.name;
        say(&format!("{name} deployed, generation {generation}"))?;
        if self.wait {
            let within: Duration = self.timeout.duration();
            let nodes = wait::until_running(target, log.as_ref(), &identity, generation, within)?;
            let nodes = count(nodes, "node");
            say(&if is_paused {
                format!("{name} is paused on {nodes}: `coproc resume {name}` lets it go on")
            } else {
                format!("{name} runs on {nodes}")
            })?;
        }
        Ok(())
    }

    /// A module of the command line.
    #[cfg_attr(not(feature = "oci"), expect(clippy::unused_self, reason = "flags are for registries"))]
    fn module(&self, path: &Path) -> anyhow::Result<Module> {
        #[cfg(feature = "oci")]
        if let crate::oci::Subject::Image(image) = crate::oci::Subject::from_path(path) {
            return self.registry.module(&image);
        }
        Module::read(path)
    }

    /// The manifest, changed by the flags.
    fn manifest(&self, given: &[Module]) -> anyhow::Result<Manifest> {
        let mut names = BTreeSet::new();
        if let Some((twice, _)) = self.var.iter().find(|(name, _)| !names.insert(name)) {
            return Err(coded(Exit::Usage, format!("--var gives {twice} twice: which value is meant?")));
        }
        let mut manifest = match &self.file {
            Some(file) => manifest::read(file)?,
            None => self.bare(given)?,
        };
        if !self.modules.is_empty() {
            let before = manifest.steps.first().map(|step| (step.env.clone(), step.limits));
            manifest.steps = steps(&self.modules, before.unwrap_or_default());
        }
        if let Some(name) = &self.name {
            manifest.name = name.clone();
        }
        if let Some(description) = &self.description {
            manifest.description.clone_from(description);
        }
        if !self.input_topic.is_empty() {
            manifest.inputs.clone_from(&self.input_topic);
        }
        if !self.output_topic.is_empty() {
            manifest.outputs.clone_from(&self.output_topic);
        }
        if self.materialized {
            manifest.naming = Naming::Materialized;
        }
        manifest.start = self.from_offset.unwrap_or(manifest.start);
        for step in &mut manifest.steps {
            step.env.extend(self.var.iter().cloned());
            self.limit(&mut step.limits);
        }
        self.set_policies(&mut manifest.policies);
        Ok(manifest)
    }

    /// What the module says of itself, where there is one and it does; else every default.
    fn bare(&self, given: &[Module]) -> anyhow::Result<Manifest> {
        if let [module] = given
            && let Some(text) = section::manifest(&module.bytes)
        {
            return manifest::parse(text, Path::new(""))
                .map_err(|error| coded(Exit::Usage, format!("{error:#}")))
                .with_context(|| {
                    let at = module.path.display();
                    format!("the manifest in {at} is not as it has to be: name another one with -f")
                });
        }
        match &self.name {
            Some(name) => Ok(bare(name.clone())),
            None => manifest_of(&self.modules),
        }
    }

    fn limit(&self, limits: &mut Limits) {
        limits.memory = self.memory.unwrap_or(limits.memory);
        limits.time_per_record = self.time_per_record.unwrap_or(limits.time_per_record);
        limits.max_output_bytes = self.max_output.unwrap_or(limits.max_output_bytes);
    }

    fn set_policies(&self, policies: &mut Policies) {
        let errors = &mut policies.error_policy;
        if let Some(topic) = &self.dead_letter_topic {
            errors.dead_letter_topic = Some(topic.clone());
            errors.on_exhausted = OnExhausted::DeadLetter;
        }
        if let Some(action) = self.on_exhausted {
            errors.on_exhausted = match action {
                OnExhaustedArg::Fail => OnExhausted::Fail,
                OnExhaustedArg::Skip => OnExhausted::Skip,
                OnExhaustedArg::DeadLetter => OnExhausted::DeadLetter,
            };
        }
        errors.max_retries = self.max_retries.unwrap_or(errors.max_retries);
        policies.parallelism = self.parallelism.unwrap_or(policies.parallelism);
        policies.batch.commit_interval = self.commit_interval.unwrap_or(policies.batch.commit_interval);
        if let Some(delivery) = self.delivery {
            policies.delivery = match delivery {
                DeliveryArg::Auto => Delivery::Auto,
                DeliveryArg::ExactlyOnce => Delivery::ExactlyOnce,
                DeliveryArg::AtLeastOnce => Delivery::AtLeastOnce,
            };
        }
    }
}

/// The manifest of these modules, with every default.
pub fn manifest_of(modules: &[PathBuf]) -> anyhow::Result<Manifest> {
    let first = modules.first().ok_or_else(|| coded(Exit::Usage, "name a module, or a manifest with -f"))?;
    Ok(Manifest { steps: steps(modules, Default::default()), ..bare(name_of(first)?) })
}

fn bare(name: DeploymentName) -> Manifest {
    Manifest {
        name,
        description: String::new(),
        language: Language::default(),
        steps: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        naming: Naming::default(),
        start: StartOffset::default(),
        policies: Policies::default(),
    }
}

fn name_of(module: &Path) -> anyhow::Result<DeploymentName> {
    let name = modules::stem(module).to_lowercase().replace('_', "-");
    name.parse().map_err(|error| coded(Exit::Usage, format!("{error}: name the coprocessor with --name")))
}

fn steps(modules: &[PathBuf], (env, limits): (BTreeMap<String, String>, Limits)) -> Vec<StepFile> {
    let mut seen = BTreeSet::new();
    let step = |(i, module): (usize, &PathBuf)| {
        let name = if modules.len() == 1 { "main".into() } else { modules::stem(module) };
        let name = if seen.insert(name.clone()) { name } else { format!("{name}-{}", i + 1) };
        StepFile { name, module: module.clone(), env: env.clone(), limits }
    };
    modules.iter().enumerate().map(step).collect()
}

/// The deployment of a manifest with these modules.
pub fn deployment(manifest: &Manifest, modules: &[Module]) -> Deployment {
    let step = |(step, module): (&StepFile, &Module)| Step {
        name: step.name.clone(),
        module: ModuleRef { digest: module.digest, image: module.image.clone() },
        env: step.env.clone(),
        limits: step.limits,
    };
    let sink = |topic: &TopicName| Sink::Kafka {
        kafka: KafkaSink {
            topic: topic.clone(),
            naming: manifest.naming,
            partitioner: Partitioner::default(),
        },
    };
    Deployment {
        schema: SCHEMA,
        generation: 1,
        owner: Owner::Cli,
        description: manifest.description.clone(),
        source: Source::Kafka {
            kafka: KafkaSource {
                topics: manifest.inputs.clone(),
                start_offset: manifest.start,
                consumer_group: None,
            },
        },
        steps: manifest.steps.iter().zip(modules).map(step).collect(),
        sinks: manifest.outputs.iter().map(sink).collect(),
        policies: manifest.policies.clone(),
        paused: false,
        life: None,
    }
}

/// Says what is wrong before anything is stored, with the flags' names where there is just a flag missing.
pub fn check(deployment: &Deployment) -> anyhow::Result<()> {
    if deployment.inputs().is_empty() {
        return Err(coded(
            Exit::Usage,
            "there is no input topic: name one with --input-topic, or give the project's manifest with -f coproc.yaml",
        ));
    }
    if deployment.sinks.is_empty() {
        return Err(coded(
            Exit::Usage,
            "there is no output topic: name one with --output-topic, or give the project's manifest with -f coproc.yaml",
        ));
    }
    let problems = deployment.problems();
    if problems.is_empty() { Ok(()) } else { Err(crate::control::writer::Error::Invalid(problems).into()) }
}

/// Whether the topics are there: all that are not, at once.
pub fn check_topics(log: &dyn Log, deployment: &Deployment) -> anyhow::Result<()> {
    let plain = deployment.kafka_sinks().filter(|sink| sink.naming == Naming::Plain);
    let outputs = plain.map(|sink| &sink.topic).chain(&deployment.policies.error_policy.dead_letter_topic);
    let mut missing = BTreeSet::new();
    for topic in deployment.inputs().iter().chain(outputs) {
        let Some(info) = log.topics().describe(topic)? else {
            missing.insert(topic);
            continue;
        };
        if info.config.materialized && !deployment.inputs().contains(topic) {
            let hint = topic.as_materialized().map(|(source, dest)| {
                format!(": `--input-topic {source} --output-topic {dest} --materialized` makes this one")
            });
            let reason =
                format!("it is materialized, only its coprocessor writes to it{}", hint.unwrap_or_default());
            return Err(LogError::NotWritable { topic: topic.clone(), reason }.into());
        }
    }
    refuse_missing(&missing)
}

fn refuse_missing(missing: &BTreeSet<&TopicName>) -> anyhow::Result<()> {
    let names: Vec<&str> = missing.iter().map(|topic| topic.as_str()).collect();
    match missing.first() {
        None => Ok(()),
        // A materialized one cannot be created: that is said of it alone.
        Some(_) if missing.len() > 1 && missing.iter().all(|topic| topic.as_materialized().is_none()) => {
            let message = format!(
                "topics {} do not exist: create them with `coproc topic create {}`",
                names.join(", "),
                names.join(" ")
            );
            Err(coded(Exit::NotFound, message))
        }
        Some(first) => {
            let topic = missing.iter().find(|topic| topic.as_materialized().is_some()).unwrap_or(first);
            Err(LogError::UnknownTopic((*topic).clone()).into())
        }
    }
}
