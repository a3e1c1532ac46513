//! A node's life as its operator sees it: the background, readiness, signals, exit codes, logs.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use twinkle_tests::TinkerHttp;

const MODEL: &str = "tiny/llama3";

/// Tokens of one sequence.
const SEQUENCE: u32 = 100;

/// The most a test waits for anything: two cores may be busy compiling.
const PATIENCE: Duration = Duration::from_secs(100);

/// A folder with a configuration; what runs in it is ended when it is dropped.
struct Site {
    folder: TempDir,
    port: u16,
    foreground: Option<Child>,
}

impl Site {
    /// A configuration whose running operations get this long to finish when the node stops.
    fn new(graceful_shutdown_timeout_s: u32) -> Self {
        let folder = TempDir::new().expect("a folder");
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|taken| taken.local_addr()).expect("a port").port();
        let site = Self { folder, port, foreground: None };
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/fixtures/llama3");
        let yaml = format!(
            "
http_options: {{host: 127.0.0.1, port: {port}}}
persistence: {{mode: file, file_path: {state}}}
applications:
  - {{name: server, route_prefix: /api/v1, import_path: server}}
  - name: model
    route_prefix: /api/v1/model/{MODEL}
    import_path: model
    args:
      model_id: {model}
      torch_dtype: float32
      device_group: {{name: model, ranks: 1, device_type: CPU}}
      queue_config: {{tps_limit: 0, rps_limit: 0, max_input_tokens: 100000000, execution_timeout: 0}}
    deployments: [{{graceful_shutdown_timeout_s: {graceful_shutdown_timeout_s}}}]
  - name: processor
    route_prefix: /api/v1/processor
    import_path: processor
    args: {{ncpu_proc_per_node: 1}}
",
            state = site.folder.path().join("state").display(),
            model = model.display(),
        );
        fs::write(site.config(), yaml).expect("a configuration");
        site
    }

    fn config(&self) -> String {
        self.folder.path().join("node.yaml").display().to_string()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
        command.args(arguments).args(["--config", &self.config()]).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// Runs a subcommand to its end: its exit code and what it said.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("the binary runs");
        (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
    }

    /// Starts a node in the foreground and waits until it is ready.
    async fn start(&mut self, arguments: &[&str]) {
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let node = self.command(arguments).stdout(Stdio::null()).stderr(log).spawn().expect("the binary runs");
        self.foreground = Some(node);
        self.until("ready", async |site| site.readiness().await.is_some_and(|(status, _)| status == 200)).await;
    }

    fn log_path(&self) -> std::path::PathBuf {
        self.folder.path().join("foreground.log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Status and body of `/readyz`; `None` when nothing listens.
    async fn readiness(&self) -> Option<(u16, Value)> {
        let response = reqwest::get(self.url("/readyz")).await.ok()?;
        let status = response.status().as_u16();
        Some((status, response.json().await.ok()?))
    }

    async fn until(&self, what: &str, reached: impl AsyncFn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self).await {
            assert!(Instant::now() < deadline, "not {what} in time:\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn signal(&self, signal: Signal) {
        let node = self.foreground.as_ref().expect("a node in the foreground");
        kill_process(Pid::from_child(node), signal).expect("the node is there");
    }

    /// Waits for the end of the node in the foreground.
    async fn ended(&mut self) -> ExitStatus {
        let mut node = self.foreground.take().expect("a node in the foreground");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = node.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the node did not end:\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn client(&self) -> TinkerHttp {
        TinkerHttp::new(&self.url(""), "tml-lifecycle")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(node) = &mut self.foreground {
            let _ = node.kill();
            let _ = node.wait();
        }
        // A test that failed half way may have left one in the background.
        let _ = self.command(&["stop", "--now"]).output();
    }
}

/// A forward-backward that keeps the engine busy for some seconds.
async fn submit_long_pass(client: &TinkerHttp, run: &str) -> String {
    let tokens: Vec<u32> = (0..SEQUENCE).map(|index| (index * 7) % 250).collect();
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let datum = json!({
        "model_input": { "chunks": [{ "tokens": inputs }] },
        "loss_fn_inputs": {
            "target_tokens": { "data": targets, "dtype": "int64" },
            "weights": { "data": vec![1.0; targets.len()], "dtype": "float32" },
        },
    });
    let body = json!({
        "model_id": run,
        "seq_id": 1,
        "forward_backward_input": { "loss_fn": "cross_entropy", "data": vec![datum; 500] },
    });
    client.submit("forward_backward", &body).await.expect("accepted")
}

/// A run with a long pass that has begun and an optimizer step behind it: run and both requests.
async fn busy(site: &Site) -> (String, [String; 2]) {
    let client = site.client();
    let run = client.create_run(MODEL, 4, 11).await.expect("a run");
    let pass = submit_long_pass(&client, &run).await;
    let step = client.submit_optim_step(&run, 2, 1e-2).await.expect("accepted");
    (run, [pass, step])
}

/// Both results and the logprobs after them.
async fn outcome(site: &Site, run: &str, requests: &[String; 2]) -> Value {
    let client = site.client();
    let mut results = Vec::new();
    for request in requests {
        results.push(client.result(request).await.expect("a result"));
    }
    let logprobs = client.forward(run, 3, &[5, 9, 31, 7, 120]).await.expect("logprobs");
    json!([results, logprobs["loss_fn_outputs"]])
}

async fn uninterrupted() -> Value {
    let mut site = Site::new(20);
    site.start(&["launch"]).await;
    let (run, requests) = busy(&site).await;
    outcome(&site, &run, &requests).await
}

#[tokio::test]
async fn a_node_in_the_background_is_ready_when_the_command_returns_and_stop_ends_it() {
    let site = Site::new(20);
    let (code, said) = site.run(&["--no-wait"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("ready on http://127.0.0.1:{}", site.port)), "{said}");
    assert_eq!(site.readiness().await.expect("it listens").0, 200);

    // While it runs, nothing else may touch its state.
    for command in [&["--no-wait"][..], &["launch"], &["clear", "persistence"]] {
        let (code, said) = site.run(command);
        assert_eq!(code, Some(1), "{command:?}: {said}");
        assert!(said.contains("a node of this configuration already runs on http://127.0.0.1"), "{said}");
    }
    site.client().ask("create_session", &json!({ "tags": [], "sdk_version": "0.16.1" })).await.expect("a session");

    let (code, said) = site.run(&["stop"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("stopped after"), "{said}");
    assert_eq!(site.readiness().await, None);
    assert!(!site.folder.path().join("state/node.pid").exists());

    let (code, said) = site.run(&["stop"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("error: no node of"), "{said}");
    assert_eq!(
        site.run(&["clear", "persistence"]),
        (Some(0), "cleared 1 keys from persistence backend (mode=file)\n".to_owned())
    );
}

#[tokio::test]
async fn a_node_that_fails_in_the_background_tells_why_and_with_which_exit_code() {
    let site = Site::new(20);
    let taken = TcpListener::bind(("127.0.0.1", site.port)).expect("the port is free");
    let (code, said) = site.run(&["--no-wait"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("error: cannot listen on `127.0.0.1:{}`: another program", site.port)), "{said}");
    drop(taken);

    let yaml = fs::read_to_string(site.config()).expect("the configuration");
    fs::write(site.config(), yaml.replace("import_path: processor", "import_path: procesor")).expect("written");
    let (code, said) = site.run(&["--no-wait"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("procesor"), "{said}");
}

#[tokio::test]
async fn a_killed_node_leaves_a_pid_file_that_stops_nobody() {
    let mut site = Site::new(20);
    site.start(&["launch"]).await;
    site.signal(Signal::KILL);
    assert!(!site.ended().await.success());
    let (code, said) = site.run(&["stop"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("has ended without a goodbye"), "{said}");

    // The number was given to another program: this one.
    let pid_file = site.folder.path().join("state/node.pid");
    fs::write(&pid_file, format!("{}\nhttp://127.0.0.1:1\n50\n", std::process::id())).expect("written");
    let (code, said) = site.run(&["stop"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is another program now"), "{said}");
    assert!(!pid_file.exists());
}

#[tokio::test]
async fn readiness_goes_first_and_results_are_served_while_the_node_drains() {
    let mut site = Site::new(60);
    site.start(&["launch"]).await;
    let (_, [pass, _]) = busy(&site).await;
    site.signal(Signal::TERM);
    let client = site.client();
    site.until("draining", async |site| site.readiness().await.is_none_or(|(_, body)| body["draining"] == true)).await;
    let (status, body) = site.readiness().await.expect("it listens until the pass is done");
    assert_eq!((status, &body["ready"]), (503, &json!(false)));
    let alive = reqwest::get(site.url("/livez")).await.expect("it listens until the pass is done");
    assert_eq!(alive.status(), 200);
    let (status, refused) = client
        .post(
            "create_model",
            &json!({
                "session_id": "s", "model_seq_id": 1, "base_model": MODEL, "lora_config": { "rank": 4 },
            }),
        )
        .await
        .expect("an answer");
    assert_eq!(status, 503, "{refused}");
    assert_eq!(client.result(&pass).await.expect("a result")["type"], Value::Null);
    assert_eq!(site.ended().await.code(), Some(0), "{}", site.log());
}

#[tokio::test]
async fn sigterm_in_the_middle_of_a_pass_ends_in_bound_and_the_run_continues() {
    let expected = uninterrupted().await;
    let mut site = Site::new(0);
    site.start(&["launch"]).await;
    let (run, requests) = busy(&site).await;
    let began = Instant::now();
    site.signal(Signal::TERM);
    assert_eq!(site.ended().await.code(), Some(0), "{}", site.log());
    assert!(began.elapsed() < Duration::from_secs(51), "the bound is 50 s: {:?}\n{}", began.elapsed(), site.log());
    assert!(site.log().contains("stops_within_s=50.0"), "{}", site.log());

    site.start(&["launch"]).await;
    assert_eq!(outcome(&site, &run, &requests).await, expected);
}

#[tokio::test]
async fn a_second_signal_ends_the_node_at_once_and_nothing_is_lost() {
    let expected = uninterrupted().await;
    let mut site = Site::new(60);
    site.start(&["launch"]).await;
    let (run, requests) = busy(&site).await;
    site.signal(Signal::TERM);
    site.until("draining", async |site| site.readiness().await.is_some_and(|(status, _)| status == 503)).await;
    site.signal(Signal::INT);
    let began = Instant::now();
    assert_eq!(site.ended().await.code(), Some(0), "{}", site.log());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(site.log().contains("stopped by a second signal"), "{}", site.log());

    site.start(&["launch"]).await;
    assert_eq!(outcome(&site, &run, &requests).await, expected);
}

#[tokio::test]
async fn every_listed_route_is_answered() {
    let mut site = Site::new(20);
    site.start(&["launch"]).await;
    let (code, listed) = site.run(&["routes"]);
    assert_eq!(code, Some(0), "{listed}");
    let client = reqwest::Client::new();
    let mut answered = 0;
    for line in listed.lines() {
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
        let method: reqwest::Method = method.parse().expect("a method");
        let path = path.replace("{*", "{").replace(['{', '}'], "");
        let request = client.request(method.clone(), site.url(&path)).header("x-api-key", "tml-lifecycle");
        let answer = request.send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert!(status != 405 && !text.contains("no route"), "{method} {path}: {status} {text}");
        answered += 1;
    }
    assert!(answered > 30, "{listed}");
    let unlisted = client.get(site.url("/api/v1/asample")).header("x-api-key", "tml-lifecycle").send().await;
    assert_eq!(unlisted.expect("an answer").status(), 404);
}

#[tokio::test]
async fn an_application_is_shown_in_depth() {
    let mut site = Site::new(20);
    site.start(&["launch"]).await;
    let client = reqwest::Client::new();
    let ask = async |name: &str| {
        let request = client.get(site.url(&format!("/health/{name}"))).header("x-api-key", "tml-lifecycle");
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
    };
    let (status, model) = ask("model").await;
    assert_eq!((status, &model["health"], &model["base_model"]), (200, &json!("ready"), &json!(MODEL)));
    let (status, missing) = ask("modle").await;
    assert_eq!(status, 404);
    assert!(missing["detail"].as_str().expect("a text").contains("no application is named `modle`"), "{missing}");
}

#[tokio::test]
async fn json_logs_are_one_object_a_line_and_carry_the_ids() {
    let mut site = Site::new(20);
    site.start(&["launch", "--log-format", "json", "--log-level", "debug"]).await;
    let client = site.client();
    let run = client.create_run(MODEL, 4, 11).await.expect("a run");
    let pass = client.submit_forward_backward(&run, 1, &[5, 9, 31]).await.expect("accepted");
    client.result(&pass).await.expect("a result");
    site.signal(Signal::TERM);
    assert_eq!(site.ended().await.code(), Some(0));

    let log = site.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    for line in &lines {
        for key in ["time", "level", "target", "message"] {
            assert!(line[key].is_string(), "{line}");
        }
    }
    let carry = |keys: &[&str]| lines.iter().any(|line| keys.iter().all(|key| line[key].is_string()));
    assert!(carry(&["request", "tenant", "path"]), "{log}");
    assert!(carry(&["request", "tenant", "run"]), "{log}");
}
