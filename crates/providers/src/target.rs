//! What a request asks for at its provider: keys are chosen, and not used for a while, by it.

/// What a request asks for, and which key of a pool it should be sent with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Target<'a> {
    /// The endpoint, such as `/v1/messages`.
    pub endpoint: &'a str,
    /// The model, if the request names one.
    pub model: Option<&'a str>,
    /// The conversation that the request belongs to: with weighted keys, its requests get the same key
    /// while that one is ready.
    pub session: Option<&'a str>,
    /// The name of the key that made the stored objects which the request names. It serves the request
    /// unless the provider rejects it or it is no longer configured: other keys may not know the objects.
    pub bound_key: Option<&'a str>,
    /// Whether a model's answer is asked for as a stream: its first event may be an error.
    pub is_model_stream: bool,
}
