//! What the reference of routes says, against what the routes do.

use schemars::SchemaGenerator;

use super::*;
use crate::openapi::Body as Described;
use crate::tinker::routes;

#[tokio::test]
async fn what_a_request_is_said_to_need_it_needs() {
    let fixture = Fixture::new().await;
    let mut asked = 0;
    for route in routes() {
        let Described::Json { schema, .. } = route.operation.body else { continue };
        let whole = (schema.whole)(&mut SchemaGenerator::default());
        let Some(needed) = whole.get("required").and_then(|names| names[0].as_str()) else { continue };
        let path = route.path.replace(['{', '}'], "");
        let request = Request::builder().method(route.method).uri(&path).body(Body::from("{}")).unwrap();
        let detail = fixture.send(request).await.refused(StatusCode::BAD_REQUEST);
        assert!(detail.contains(&format!("missing field `{needed}`")), "{} {path}: {detail}", route.method);
        asked += 1;
    }
    assert!(asked > 20, "{asked}");
}
