//! Where every failure below becomes one kind of answer, and where defects are logged.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use tower::{Layer, Service};
use tracing::error;

use crate::call::{Call, Reply};
use crate::component::ComponentKind;
use crate::error::{Error, ErrorCode, Result};

/// Turns a panic into [`ErrorCode::Internal`] and logs every internal error once, with what was asked.
#[derive(Clone, Copy, Debug)]
pub struct RescueLayer {
    kind: ComponentKind,
}

impl RescueLayer {
    /// A layer that names the component of this kind in its log lines.
    #[must_use]
    pub const fn new(kind: ComponentKind) -> Self {
        Self { kind }
    }
}

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Rescue { inner, kind: self.kind }
    }
}

/// The service of [`RescueLayer`].
#[derive(Clone, Debug)]
pub struct Rescue<S> {
    inner: S,
    kind: ComponentKind,
}

impl<S> Service<Call> for Rescue<S>
where
    S: Service<Call, Response = Reply, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let kind = self.kind;
        let operation = call.operation.name();
        let tenant = call.tenant.clone();
        // What the panicking future owned is dropped with it; shared state guards itself.
        let started = std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.call(call)));
        Box::pin(async move {
            let outcome = match started {
                Ok(answer) => AssertUnwindSafe(answer).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            let answer = outcome.unwrap_or_else(|panic| {
                error!(%kind, operation, %tenant, panic = panic_text(panic.as_ref()), "a component panicked");
                Err(Error::internal(format!("the {kind} component failed on `{operation}`")))
            });
            if let Err(failure) = &answer
                && failure.code == ErrorCode::Internal
            {
                error!(%kind, operation, %tenant, error = %failure, "internal error");
            }
            answer
        })
    }
}

/// The text given to `panic!`, where there is one.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        return text;
    }
    panic.downcast_ref::<String>().map_or("a panic without a text", String::as_str)
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::call::{Operation, ServeRequest};
    use crate::ids::{SessionId, TenantId};

    fn call() -> Call {
        let operation = Operation::Serve(ServeRequest::Heartbeat(SessionId::new("s")));
        Call { tenant: TenantId::new("alice"), operation }
    }

    #[tokio::test]
    async fn a_panic_below_is_an_internal_error_without_its_text() {
        let service = RescueLayer::new(ComponentKind::Server)
            .layer(service_fn(|_: Call| async { panic!("secret") as Result<Reply> }));
        let error = service.oneshot(call()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
        assert_eq!(error.message, "the server component failed on `serve`");
    }

    #[tokio::test]
    async fn other_errors_pass_unchanged() {
        let service = RescueLayer::new(ComponentKind::Server)
            .layer(service_fn(|_: Call| async { Err::<Reply, _>(Error::not_found("no such session")) }));
        assert_eq!(service.oneshot(call()).await.unwrap_err(), Error::not_found("no such session"));
    }
}
