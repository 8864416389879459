//! A request prepared for one provider instance: its credential, permit, headers and edits.

use std::sync::Arc;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{HeaderName, Response, StatusCode, header};
use keybridge_providers::{
    attempt::AttemptLog,
    bedrock::{self, Bedrock},
    body::{AnswerBody, judged_status},
    breaker::Permit,
    choice::{CredentialRequest, Denied, KeyChoice, choose},
    credential::Credential,
    dump::Dump,
    failure::Failure,
    outgoing::Outgoing,
    provider::{Provider, is_exhausted},
    target::Target,
};
use keybridge_wire::observe::UsageChunkFilter;

use crate::{
    access::run_until_ended,
    admission::{
        IdentifiedRequest,
        client::{client, session_id},
        route::Purpose,
    },
    headers::{self, Forwarding, Outbound},
    settlement::DispatchRecord,
    tools::{
        InjectedTools,
        edits::{self, EditedBody, INCLUDE_USAGE, MergePlan},
    },
};

/// The shared state that a dispatch is prepared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DispatchContext<'a> {
    pub(crate) fingerprint_key: &'a hmac::Key,
    pub(crate) governance_headers: &'a [HeaderName],
    pub(crate) forwarding: Forwarding,
    pub(crate) tools: &'a InjectedTools,
}

/// A request prepared for one provider instance.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) provider: Arc<Provider>,
    pub(crate) credential: Arc<Credential>,
    /// The circuit breaker's permit, if the provider has a circuit breaker.
    permit: Option<Permit>,
    pub(crate) outgoing: Outgoing,
    /// The model, if it is another one than the client named.
    pub(crate) model: Option<String>,
    /// The conversation of the request, if its key depends on it.
    session: Option<String>,
    pub(crate) edits: Vec<String>,
    /// Set when the answer may take several turns.
    pub(crate) merge: Option<MergePlan>,
}

impl Dispatch {
    /// Chooses the credential, gets a permit from the circuit breaker, and makes the edits that this
    /// instance needs. A fallback may be asked for another model than the client named.
    pub(crate) async fn prepare(
        (provider, model): (Arc<Provider>, Option<&str>),
        request: &IdentifiedRequest,
        keys: KeyChoice,
        context: DispatchContext<'_>,
    ) -> Result<Box<Self>, Denied> {
        let headers = &request.head.headers;
        let (kind, key) = (request.credential_kind, context.fingerprint_key);
        let session = provider.chooses_key_by_session().then(|| conversation(request)).flatten();
        let credential = match provider.bedrock() {
            None => {
                let target = target(request, model, session.as_deref());
                let request = CredentialRequest { kind, headers, target, keys };
                choose(&provider, &request, key)?
            }
            // Boxed: few providers need it.
            Some(aws) => Box::pin(bedrock::choose(&provider.config, aws, kind, headers, key))
                .await
                .map(Arc::new)
                .map_err(Denied::Refused)?,
        };
        if let Some(objects) = &request.objects
            && credential.is_centralized()
        {
            let user = request.caller.user_id;
            objects.check(user, &provider.config).map_err(Denied::Refused)?;
        }
        let permit = match request.route.purpose {
            Purpose::Change | Purpose::Allowed(_) | Purpose::Count(_) | Purpose::PassThrough => {
                None
            }
            Purpose::Intercept(_) | Purpose::Metered(_) => {
                permit((&provider, model), request, &credential)?
            }
        };
        let (outgoing, edited) =
            outgoing((&provider, model), request, &credential, context).map_err(Denied::Refused)?;
        let EditedBody { edits, merge, .. } = edited;
        let model = model.map(str::to_owned);
        let dispatch =
            Self { provider, credential, permit, outgoing, model, session, edits, merge };
        Ok(Box::new(dispatch))
    }

    /// Sends the request: with each of the provider's keys, and with retries where they may help.
    pub(crate) async fn send(
        &self,
        request: &IdentifiedRequest,
        attempts: &AttemptLog,
    ) -> Result<Response<AnswerBody>, Failure> {
        let target = target(request, self.model.as_deref(), self.session.as_deref());
        let sending = self.provider.send(&self.outgoing, &target, attempts);
        let sent = run_until_ended(&request.caller.access, sending).await?;
        // An upload that its sender does not complete ends the exchange.
        let upload_failure = || self.outgoing.upload.as_ref()?.failure();
        sent.map_err(|failure| upload_failure().unwrap_or(failure))
    }

    /// Whether the bridge asks for the usage of the stream, and not the client.
    pub(crate) fn asks_usage(&self) -> bool {
        self.edits.iter().any(|edit| edit == INCLUDE_USAGE)
    }

    /// The filter that removes the usage chunk that the client did not request.
    pub(crate) fn usage_filter(&self) -> Option<UsageChunkFilter> {
        self.asks_usage().then(UsageChunkFilter::new)
    }

    /// Makes the edits again, after the provider has refused to include usage.
    pub(crate) fn edit_again(
        &mut self,
        request: &IdentifiedRequest,
        context: DispatchContext<'_>,
    ) -> Result<(), Failure> {
        let target = (&*self.provider, self.model.as_deref());
        let (outgoing, edited) = outgoing(target, request, &self.credential, context)?;
        self.outgoing = outgoing;
        self.edits = edited.edits;
        self.merge = edited.merge;
        Ok(())
    }

    /// Starts a dump of the exchange, if this instance has dumps enabled.
    pub(crate) fn dump(&self, request: &IdentifiedRequest) -> Option<Dump> {
        let provider = &self.provider;
        let dumps = provider.dumps.as_ref()?;
        dumps.request(&request.id.to_string(), &self.outgoing, &provider.config)
    }

    /// What the record needs of this dispatch; takes the permit.
    pub(crate) fn record(&mut self) -> DispatchRecord {
        DispatchRecord {
            provider: Arc::clone(&self.provider),
            credential: Arc::clone(&self.credential),
            edits: self.edits.clone(),
            permit: self.permit.take(),
        }
    }
}

/// What the request asks for at a provider.
fn target<'a>(
    request: &'a IdentifiedRequest,
    model: Option<&'a str>,
    session: Option<&'a str>,
) -> Target<'a> {
    let route = &request.route;
    let object = route.object.as_ref();
    Target {
        endpoint: without_id(&route.endpoint, object.and_then(|object| object.id.as_deref())),
        model: model.or(request.view.model.as_deref()),
        session,
        bound_key: request.bound_key.as_deref(),
        is_model_stream: request.view.streaming && matches!(route.purpose, Purpose::Intercept(_)),
    }
}

/// An endpoint without the id of a stored object: providers limit all objects of a kind together.
fn without_id<'a>(endpoint: &'a str, id: Option<&str>) -> &'a str {
    let before_id = id.and_then(|id| endpoint.split_once(id));
    before_id.map_or(endpoint, |(before, _)| before.trim_end_matches('/'))
}

/// The conversation that the client claims, which belongs to its user.
fn conversation(request: &IdentifiedRequest) -> Option<String> {
    let headers = &request.head.headers;
    let session = session_id(client(headers), headers, &request.view)?;
    Some(format!("{} {session}", request.caller.user_id))
}

fn permit(
    (provider, model): (&Provider, Option<&str>),
    request: &IdentifiedRequest,
    credential: &Credential,
) -> Result<Option<Permit>, Denied> {
    let (endpoint, model) = (&request.route.endpoint, model.or(request.view.model.as_deref()));
    provider.breakers.admit(endpoint, model, credential.trace.kind).map_err(|wait| {
        let name = &provider.config.name;
        let detail = format!("the provider `{name}` is failing and its circuit breaker is open");
        Denied::Unavailable(Failure::unavailable(&detail, wait))
    })
}

/// The status of an answer after which a fallback may serve the request.
pub(crate) fn exhausted_status(
    answered: &Result<Response<AnswerBody>, Failure>,
    attempts: &AttemptLog,
) -> Option<StatusCode> {
    let status = judged_status(answered.as_ref().ok()?);
    is_exhausted(status, &attempts.credential()).then_some(status)
}

/// Builds the headers for the provider and, only where a feature needs it, edits the body.
fn outgoing(
    (provider, model): (&Provider, Option<&str>),
    request: &IdentifiedRequest,
    credential: &Credential,
    context: DispatchContext<'_>,
) -> Result<(Outgoing, EditedBody), Failure> {
    let (route, head) = (&request.route, &request.head);
    let config = &provider.config;
    let query = head.uri.query().and_then(headers::query_to_provider);
    let upstream = route.upstream_path(config, model.or(request.view.model.as_deref()))?;
    let uri = config
        .uri(&upstream.path, query.as_deref())
        .ok_or_else(|| Failure::invalid("the path or query string is not valid in a URL"))?;
    let mut edited = match route.purpose {
        Purpose::Intercept(dialect) => {
            let (view, plain) = (&request.view, request.body.plain());
            edits::edit(context.tools, provider, dialect, view, &plain, &request.hidden)?
        }
        // What is counted is what would be sent; it has no turns. A body that cannot be read passes.
        Purpose::Count(dialect) => {
            let (view, plain) = (&request.view, request.body.plain());
            let edited =
                edits::edit(context.tools, provider, dialect, view, &plain, &request.hidden);
            EditedBody { merge: None, ..edited.unwrap_or_default() }
        }
        Purpose::Metered(_) | Purpose::Change | Purpose::Allowed(_) | Purpose::PassThrough => {
            EditedBody::default()
        }
    };
    let deployment = route.deployment.as_deref().filter(|_| !upstream.names_model);
    if let Some(model) = model.or(deployment) {
        let named = edited.set_model(&request.body.plain(), model);
        // Another body than a model request's passes if it cannot be read, such as an upload.
        if route.purpose.is_billed() {
            named?;
        }
    }
    if provider.bedrock().is_some_and(Bedrock::translates) {
        edited.body.get_or_insert_with(|| request.body.plain());
        edited.edits.push(bedrock::TRANSLATED.into());
    }
    let user_id = request.caller.user_id.to_string();
    // An answer that is merged must arrive unencoded.
    let is_read = request.view.streaming || edited.merge.is_some();
    let outbound = Outbound {
        governance_headers: context.governance_headers,
        set_headers: &config.set_headers,
        forwarding: context.forwarding,
        credential,
        profile: &config.profile,
        actor: config.send_actor_headers.then_some((&user_id, &request.caller.user_name)),
        accept_encoding: headers::accept_encoding(&head.headers, is_read),
    };
    let mut headers = headers::to_provider(&head.headers, &outbound);
    let body: Option<Bytes> = edited.body.take();
    if body.is_some() {
        // An edited body is not encoded again.
        headers.remove(header::CONTENT_ENCODING);
    }
    let body = body.unwrap_or_else(|| request.body.bytes.clone());
    let upload = request.body.upload.clone();
    Ok((Outgoing { method: head.method.clone(), uri, headers, body, upload }, edited))
}

#[cfg(test)]
mod tests {
    use super::without_id;

    #[test]
    fn all_objects_of_a_kind_have_one_endpoint() {
        for (endpoint, id, expected) in [
            ("/v1/responses/resp_1/cancel", Some("resp_1"), "/v1/responses"),
            ("/v1/responses/resp_1", Some("resp_1"), "/v1/responses"),
            ("/v1/responses", None, "/v1/responses"),
            ("/v1/files", Some("file-1"), "/v1/files"),
        ] {
            assert_eq!(without_id(endpoint, id), expected, "{endpoint}");
        }
    }
}
