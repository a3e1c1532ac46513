//! The errors as a page: `docs/errors.md`.

use std::fmt::Write as _;

use twinkle_core::docs::assert_written;
use twinkle_core::error::ErrorCode;

use crate::error_response::status;

/// The whole page, in Markdown.
fn page() -> String {
    let mut page = String::from(
        "# Errors\n\n\
         Written from the table of codes; a test compares. Every refused request is answered with a JSON object:\n\n\
         ```json\n\
         {\"detail\": \"unknown loss `cross_entrpy` (hint: did you mean `cross_entropy`?)\", \"code\": \"invalid_argument\", \"request_id\": \"…\"}\n\
         ```\n\n\
         `detail` is for people and may change, `code` is for programs and stays. `request_id` finds the request in the log. \
         Below `/v1` the same texts come in OpenAI's form, `{\"error\": {\"message\", \"type\", \"code\"}}`. A failure of accepted \
         work is the result of its future and carries the same text.\n\n\
         What is wrong with a request for ever is never answered with a status that clients retry (408, 409, 429, 5xx). Statuses \
         that ask for another attempt carry `Retry-After`, in seconds, and `retry-after-ms`.\n\n\
         | Code | Status | Permanent | Meaning |\n| --- | ---: | --- | --- |\n",
    );
    for code in ErrorCode::ALL {
        let permanent = if code.is_users_fault() { "yes" } else { "no" };
        let name = serde_json::to_value(code).unwrap_or_default();
        let name = name.as_str().unwrap_or_default();
        let _ = writeln!(page, "| `{name}` | {} | {permanent} | {} |", status(*code).as_u16(), code.meaning());
    }
    page += "\nThe native Twinkle routes show `gone` as 404: their client takes 410 for the end of an iterator.\n";
    page
}

#[test]
fn the_documentation_says_what_the_codes_say() {
    assert_written("errors.md", &page());
}
