//! From environment and standard input to a call, and from an outcome to what is printed.

use serde_json::Value;

use crate::call::{Add, Check, Del, Gc, Status, Verb};
use crate::env::{Command, Environment, Parameters, check, pod_of_args};
use crate::netconf::{MAX_CONFIG, object};
use crate::version::version_reply;
use crate::{AttachmentId, CniError, CniResult, CniVersion, ErrorCode, NetConf};

/// What a runtime asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// VERSION, answered by this alone.
    Version(Output),
    /// Anything else.
    Call(Box<Call>),
}

/// A valid call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The configuration.
    pub conf: NetConf,
    /// The verb with its parameters.
    pub verb: Verb,
    /// The result of the plugins before this one, in ADD.
    previous: Option<CniResult>,
}

/// What the process prints and how it ends. Standard output holds one JSON object or nothing at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The object on standard output.
    pub stdout: Option<Value>,
    /// Whether the exit code is 0.
    pub success: bool,
}

impl Output {
    /// Success of a verb that has no result: the spec wants no output then.
    #[must_use]
    pub fn nothing() -> Self {
        Self { stdout: None, success: true }
    }

    /// An error.
    #[must_use]
    pub fn error(version: CniVersion, error: &CniError) -> Self {
        Self { stdout: Some(error.to_json(version)), success: false }
    }

    fn result(value: Value) -> Self {
        Self { stdout: Some(value), success: true }
    }
}

impl Call {
    /// The answer to a successful ADD: the previous result, if there is one, and what was added to it.
    #[must_use]
    pub fn added(&self, ours: CniResult) -> Output {
        let all = CniResult::after(self.previous.clone().unwrap_or_default(), ours);
        Output::result(all.to_json(self.conf.version))
    }

    /// The answer to a call that failed.
    #[must_use]
    pub fn failed(&self, error: &CniError) -> Output {
        Output::error(self.conf.version, error)
    }

    /// The DEL that undoes this ADD; `None` for any other verb.
    #[must_use]
    pub fn undo(&self) -> Option<Del> {
        let Verb::Add(add) = &self.verb else { return None };
        Some(Del {
            attachment: add.attachment.clone(),
            netns: Some(add.netns.clone()),
            pod: Some(add.pod.clone()),
            network: add.network.clone(),
            config: add.config.clone(),
        })
    }
}

/// Judges a call as strictly as the spec says.
///
/// # Errors
/// The output that refuses it.
pub fn interpret(env: &Environment, stdin: &[u8]) -> Result<Asked, Output> {
    let refuse = |e: &CniError| Output::error(version_for_errors(stdin), e);
    let parameters = check(env).map_err(|e| refuse(&e))?;
    if parameters.command == Command::Version {
        return Ok(Asked::Version(Output::result(version_reply(asked_version(stdin).as_deref()))));
    }
    call(&parameters, stdin).map(|c| Asked::Call(Box::new(c))).map_err(|e| refuse(&e))
}

/// `cniVersion` of the input, whatever else stands there.
fn asked_version(stdin: &[u8]) -> Option<String> {
    if stdin.len() > MAX_CONFIG {
        return None;
    }
    let value: Value = serde_json::from_slice(stdin).ok()?;
    value.get("cniVersion")?.as_str().map(str::to_owned)
}

/// An error is told in the version of the configuration, and in the newest one where that says nothing usable.
fn version_for_errors(stdin: &[u8]) -> CniVersion {
    asked_version(stdin).and_then(|v| v.parse().ok()).unwrap_or(CniVersion::LATEST)
}

fn call(parameters: &Parameters, stdin: &[u8]) -> Result<Call, CniError> {
    if stdin.len() > MAX_CONFIG {
        return Err(invalid(format!("the network configuration is longer than {MAX_CONFIG} bytes")));
    }
    let config = std::str::from_utf8(stdin)
        .map_err(|e| CniError::new(ErrorCode::DECODE, format!("the network configuration: {e}")))?;
    let conf = NetConf::from_object(&object(config)?)?;
    since(parameters.command, conf.version)?;
    let (verb, previous) = match parameters.command {
        Command::Add => add(parameters, &conf, config)?,
        Command::Del => (Verb::Del(del(parameters, &conf, config)?), None),
        Command::Check => (Verb::Check(check_call(parameters, &conf, config)?), None),
        Command::Gc => {
            let valid_attachments = conf.valid_attachments()?;
            let gc = Gc { network: conf.name.clone(), valid_attachments, config: config.to_owned() };
            (Verb::Gc(gc), None)
        }
        Command::Status | Command::Version => {
            (Verb::Status(Status { network: conf.name.clone(), config: config.to_owned() }), None)
        }
    };
    Ok(Call { conf, verb, previous })
}

/// Refuses a command that the version of the configuration does not know.
fn since(command: Command, version: CniVersion) -> Result<(), CniError> {
    let first = match command {
        Command::Add | Command::Del | Command::Version => CniVersion::V0_3_1,
        Command::Check => CniVersion::V0_4_0,
        Command::Gc | Command::Status => CniVersion::V1_1_0,
    };
    if version >= first {
        return Ok(());
    }
    Err(CniError::new(
        ErrorCode::INCOMPATIBLE_VERSION,
        format!("{} needs cniVersion {first}, the configuration says {version}", command.as_str()),
    ))
}

/// The attachment; [`check`] has seen that both parts are there.
fn attachment(parameters: &Parameters) -> Result<AttachmentId, CniError> {
    match (&parameters.container_id, &parameters.ifname) {
        (Some(container_id), Some(ifname)) => {
            Ok(AttachmentId { container_id: container_id.clone(), ifname: ifname.clone() })
        }
        _ => Err(CniError::new(ErrorCode::INVALID_ENVIRONMENT, "CNI_CONTAINERID or CNI_IFNAME is missing")),
    }
}

fn netns(parameters: &Parameters) -> Result<String, CniError> {
    let missing = || CniError::new(ErrorCode::INVALID_ENVIRONMENT, "CNI_NETNS is missing");
    parameters.netns.clone().ok_or_else(missing)
}

fn add(p: &Parameters, conf: &NetConf, config: &str) -> Result<(Verb, Option<CniResult>), CniError> {
    conf.check_supported()?;
    let (attachment, netns) = (attachment(p)?, netns(p)?);
    let pod = pod_of_args(&p.args)?.ok_or_else(|| {
        CniError::new(
            ErrorCode::INVALID_ENVIRONMENT,
            "CNI_ARGS names no pod: K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID missing",
        )
    })?;
    let previous = conf.prev_result()?;
    if let Some(previous) = &previous
        && previous.interface(attachment.ifname.as_str(), &netns).is_some()
    {
        return Err(invalid(format!(
            "interface {} is already in the container, made by an earlier plugin",
            attachment.ifname
        )));
    }
    let (network, config) = (conf.name.clone(), config.to_owned());
    let add = Add { attachment, netns, netns_id: None, pod, network, config };
    Ok((Verb::Add(add), previous))
}

fn del(p: &Parameters, conf: &NetConf, config: &str) -> Result<Del, CniError> {
    // Nothing that only ADD needs may keep DEL from working; the journal knows the pod.
    let pod = pod_of_args(&p.args).ok().flatten();
    let attachment = attachment(p)?;
    Ok(Del { attachment, netns: p.netns.clone(), pod, network: conf.name.clone(), config: config.to_owned() })
}

fn check_call(p: &Parameters, conf: &NetConf, config: &str) -> Result<Check, CniError> {
    let (attachment, netns) = (attachment(p)?, netns(p)?);
    let prev_result = conf.prev_result()?.ok_or_else(|| invalid("CHECK needs prevResult".to_owned()))?;
    if prev_result.interface(attachment.ifname.as_str(), &netns).is_none() {
        return Err(invalid(format!("prevResult has no interface {} in {netns}", attachment.ifname)));
    }
    let pod = pod_of_args(&p.args)?;
    let network = conf.name.clone();
    Ok(Check { attachment, netns, pod, network, prev_result, config: config.to_owned() })
}

fn invalid(msg: String) -> CniError {
    CniError::new(ErrorCode::INVALID_CONFIG, msg)
}

#[cfg(test)]
mod tests;
