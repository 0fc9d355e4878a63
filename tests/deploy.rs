//! What is shipped for Kubernetes: the manifests fit the API's schemas and the strictest pod
//! security, say the same things where they say them twice, and the image runs without a shell.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use countersign::downstream::budget;

use crate::support::{countersign, eventually, exchange, run, signal, status_of};

/// What a reader of the README applies, and everything optional at once.
const APPLIED: [&str; 4] = [
    "kubernetes/overlays/single",
    "kubernetes/overlays/replicas",
    "kubernetes/sidecar",
    "kubernetes/overlays/everything",
];

#[test]
fn every_overlay_is_what_the_kubernetes_api_takes() {
    let validate = root().join("tests/support/peers/venv/bin/kubernetes-validate");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rendered.yaml");
    for overlay in APPLIED {
        let objects = rendered(overlay);
        // The Prometheus Operator's kinds are not Kubernetes' own.
        let (operators, own): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .partition(|object| api(object).starts_with("monitoring.coreos.com/"));
        let documents: Vec<String> = own.iter().map(Value::to_string).collect();
        fs::write(&file, documents.join("\n---\n")).unwrap();
        let validated = Command::new(&validate)
            .arg("--strict")
            .arg(&file)
            .output()
            .unwrap_or_else(|cause| {
                panic!("kubernetes-validate: {cause} (`make setup-test` installs it)")
            });
        let said = String::from_utf8_lossy(&validated.stderr).into_owned()
            + &String::from_utf8_lossy(&validated.stdout);
        assert!(validated.status.success(), "{overlay}: {said}");
        assert_eq!(
            said.matches(" passed for resource ").count(),
            own.len(),
            "{said}"
        );
        assert_eq!(
            operators.len(),
            if overlay.ends_with("everything") {
                2
            } else {
                0
            }
        );
    }
    let kinds = |overlay: &str| -> BTreeSet<String> {
        let objects = rendered(overlay);
        objects.iter().map(|object| text(&object["kind"])).collect()
    };
    for kind in [
        "Deployment",
        "Service",
        "ConfigMap",
        "ServiceAccount",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "HorizontalPodAutoscaler",
        "Role",
        "RoleBinding",
        "Ingress",
    ] {
        assert!(
            kinds("kubernetes/overlays/everything").contains(kind),
            "{kind}"
        );
    }
    assert!(kinds("kubernetes/overlays/single").contains("PersistentVolumeClaim"));
}

#[test]
fn every_pod_fits_the_restricted_pod_security_standard() {
    for overlay in APPLIED {
        let pod = pod(overlay);
        let of_pod = &pod["securityContext"];
        assert_eq!(of_pod["runAsNonRoot"], true, "{overlay}");
        assert!(of_pod["runAsUser"].as_u64() > Some(0), "{overlay}");
        assert_eq!(
            of_pod["seccompProfile"]["type"], "RuntimeDefault",
            "{overlay}"
        );
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[key].is_null(), "{overlay} {key}");
        }
        for container in containers(&pod) {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{overlay}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{overlay}");
            assert_eq!(
                context["capabilities"],
                json!({ "drop": ["ALL"] }),
                "{overlay}"
            );
            assert_ne!(context["privileged"], true, "{overlay}");
            for port in list(&container["ports"]) {
                assert!(port["hostPort"].is_null(), "{overlay}");
            }
        }
        for volume in list(&pod["volumes"]) {
            let kinds: Vec<_> = volume.as_object().unwrap().keys().collect();
            let allowed = [
                "name",
                "configMap",
                "secret",
                "persistentVolumeClaim",
                "emptyDir",
            ];
            assert!(
                kinds.iter().all(|kind| allowed.contains(&kind.as_str())),
                "{volume}"
            );
        }
    }
}

#[test]
fn what_one_manifest_says_of_another_is_so() {
    for overlay in APPLIED {
        let objects = rendered(overlay);
        let deployment = one(&objects, "Deployment");
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        let selects_the_pod = |selector: &Value| {
            let wanted = selector.as_object().unwrap();
            !wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value)
        };
        let pod = &deployment["spec"]["template"]["spec"];
        let ports: Vec<_> = containers(pod)
            .iter()
            .flat_map(|container| list(&container["ports"]))
            .map(|port| text(&port["name"]))
            .collect();
        for object in &objects {
            let spec = &object["spec"];
            match object["kind"].as_str().unwrap() {
                "Service" => {
                    assert!(selects_the_pod(&spec["selector"]), "{object}");
                    for port in list(&spec["ports"]) {
                        assert!(ports.contains(&text(&port["targetPort"])), "{object}");
                        assert_ne!(port["targetPort"], "admin", "not for callers");
                    }
                }
                "PodDisruptionBudget" | "Deployment" => {
                    assert!(
                        selects_the_pod(&spec["selector"]["matchLabels"]),
                        "{object}"
                    );
                }
                "NetworkPolicy" => {
                    assert!(
                        selects_the_pod(&spec["podSelector"]["matchLabels"]),
                        "{object}"
                    );
                    // Of others: kustomize must not have put our own labels there.
                    for (side, peers) in [("ingress", "from"), ("egress", "to")] {
                        for rule in list(&spec[side]) {
                            for peer in list(&rule[peers]) {
                                let theirs = &peer["podSelector"]["matchLabels"];
                                assert!(theirs.is_null() || !selects_the_pod(theirs), "{object}");
                                let others = "app.kubernetes.io/name";
                                assert_ne!(theirs[others], "countersign", "{object}");
                            }
                            assert!(!list(&rule["ports"]).is_empty(), "{object}");
                        }
                    }
                }
                "HorizontalPodAutoscaler" => {
                    let target = &spec["scaleTargetRef"]["name"];
                    assert_eq!(*target, deployment["metadata"]["name"]);
                    assert_eq!(spec["minReplicas"], deployment["spec"]["replicas"]);
                    assert_eq!(spec["minReplicas"], 3);
                }
                "PodMonitor" => {
                    assert!(selects_the_pod(&spec["selector"]["matchLabels"]));
                    let port = text(&spec["podMetricsEndpoints"][0]["port"]);
                    assert!(ports.contains(&port));
                }
                "Ingress" => {
                    let backend = &spec["rules"][0]["http"]["paths"][0]["backend"]["service"];
                    let service = one(&objects, "Service");
                    assert_eq!(backend["name"], service["metadata"]["name"]);
                    assert_eq!(backend["port"]["name"], service["spec"]["ports"][0]["name"]);
                    assert_eq!(spec["tls"][0]["hosts"][0], spec["rules"][0]["host"]);
                }
                "RoleBinding" => {
                    let account = &one(&objects, "ServiceAccount")["metadata"]["name"];
                    assert_eq!(object["subjects"][0]["name"], *account);
                    assert_eq!(pod["serviceAccountName"], *account);
                    let role = &one(&objects, "Role")["metadata"]["name"];
                    assert_eq!(object["roleRef"]["name"], *role);
                }
                _ => {}
            }
        }
        for constraint in list(&pod["topologySpreadConstraints"]) {
            assert!(selects_the_pod(&constraint["labelSelector"]["matchLabels"]));
        }
        let spread = list(&pod["topologySpreadConstraints"]).len();
        let replicated = overlay.ends_with("replicas") || overlay.ends_with("everything");
        assert_eq!(spread, if replicated { 2 } else { 0 });
        // A token for the API server where it is needed, and nowhere else.
        let mounted = pod["automountServiceAccountToken"] == true;
        assert_eq!(mounted, replicated, "{overlay}");
    }
}

#[test]
fn probes_ask_the_admin_port_and_a_pod_has_time_to_drain() {
    for overlay in APPLIED {
        let objects = rendered(overlay);
        let config = proxy_yaml(&objects);
        let config: Value = serde_yaml::from_str(&config).unwrap();
        let pod = pod(overlay);
        let ours = ours(&pod);
        let port = |name: &str| {
            let ports = list(&ours["ports"]);
            let port = ports.into_iter().find(|port| port["name"] == name);
            port.map_or(Value::Null, |port| port["containerPort"].clone())
        };
        let bound = |bind: &Value| -> u64 {
            let (_, port) = bind.as_str().unwrap().rsplit_once(':').unwrap();
            port.parse().unwrap()
        };
        assert_eq!(port("admin"), bound(&config["admin"]["bind"]), "{overlay}");
        assert!(
            text(&config["admin"]["bind"]).starts_with("0.0.0.0:"),
            "{overlay}"
        );
        if overlay != "kubernetes/sidecar" {
            assert_eq!(
                port("http"),
                bound(&config["listeners"][0]["bind"]),
                "{overlay}"
            );
            assert_eq!(ours["readinessProbe"]["httpGet"]["path"], "/readyz");
        }
        for (probe, paths) in [
            ("startupProbe", &["/livez", "/readyz"][..]),
            ("readinessProbe", &["/readyz"]),
            ("livenessProbe", &["/livez"]),
        ] {
            let Some(get) = ours[probe]["httpGet"].as_object() else {
                assert_eq!((overlay, probe), ("kubernetes/sidecar", "readinessProbe"));
                continue;
            };
            assert_eq!(get["port"], "admin", "{overlay} {probe}");
            assert!(
                paths.contains(&get["path"].as_str().unwrap()),
                "{overlay} {probe}"
            );
        }
        let seconds = |text: &Value| humantime::parse_duration(text.as_str().unwrap()).unwrap();
        let drain = seconds(&config["drain"]["delay"]) + seconds(&config["drain"]["timeout"]);
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        let grace = Duration::from_secs(grace);
        assert!(
            grace >= drain + Duration::from_secs(5),
            "{overlay}: {grace:?} {drain:?}"
        );
    }
}

#[test]
fn the_service_account_may_touch_its_grants_and_nothing_else() {
    let objects = rendered("kubernetes/overlays/replicas");
    let config: Value = serde_yaml::from_str(&proxy_yaml(&objects)).unwrap();
    let secret = text(&config["store"]["kubernetes"]["secret"]);
    let vendors = config["vendors"].as_object().unwrap();
    let rotating: BTreeSet<String> = vendors
        .iter()
        .filter(|(_, vendor)| {
            let kinds = ["authorization_code", "vedauth"];
            kinds.iter().any(|kind| !vendor["auth"][kind].is_null())
        })
        .map(|(name, _)| format!("{secret}-{name}"))
        .collect();
    assert!(!rotating.is_empty());
    let rules = list(&one(&objects, "Role")["rules"]);
    let mut named = BTreeSet::new();
    for rule in &rules {
        assert_eq!(rule["verbs"], json!(["get", "update"]));
        named.extend(list(&rule["resourceNames"]).iter().map(text));
    }
    assert_eq!(rules.len(), 2);
    let mut wanted = rotating.clone();
    wanted.insert(secret.clone());
    assert_eq!(named, wanted);
    // Both are made with the rest, since the proxy may not.
    let made = |kind: &str| -> BTreeSet<String> {
        let of_kind = objects.iter().filter(|object| object["kind"] == kind);
        of_kind
            .map(|object| text(&object["metadata"]["name"]))
            .collect()
    };
    assert_eq!(made("Lease"), rotating);
    assert_eq!(made("Secret"), BTreeSet::from([secret]));
    assert!(
        one(&objects, "Secret")["data"].is_null(),
        "an apply would overwrite it"
    );
}

#[test]
fn the_run_against_a_real_api_server_can_be_started_and_asks_for_what_is_shipped() {
    let script = root().join("deploy/kubernetes-store-by-hand/run.py");
    let help = Command::new("python3").arg(&script).arg("--help").output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    assert!(help.contains("--kube-apiserver"), "{help}");
    let script = fs::read_to_string(script).unwrap();
    let shipped = root().join("deploy/kubernetes");
    for file in [
        "base/service-account.yaml",
        "overlays/replicas/state.yaml",
        "overlays/replicas/rbac.yaml",
    ] {
        assert!(
            script.contains(file) && shipped.join(file).exists(),
            "{file}"
        );
    }
    assert!(
        script.contains("VENDOR = \"maxmd\""),
        "the one that the Role names"
    );
}

#[test]
fn every_proxy_yaml_that_is_shipped_passes_check_with_the_secrets_it_names() {
    for overlay in APPLIED {
        let objects = rendered(overlay);
        let config = proxy_yaml(&objects);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("proxy.yaml"), &config).unwrap();
        let form = run(
            dir.path(),
            &["check", "--without-secrets", "--config", "proxy.yaml"],
        );
        assert_eq!(form.code, Some(0), "{overlay}: {}", form.stderr);

        let pod = pod(overlay);
        let ours = ours(&pod);
        let mounts: Vec<String> = list(&ours["volumeMounts"])
            .iter()
            .map(|mount| text(&mount["mountPath"]))
            .collect();
        let arguments: Vec<String> = list(&ours["args"]).iter().map(text).collect();
        let file = arguments.last().unwrap();
        assert!(file.ends_with("/proxy.yaml") && mounts.iter().any(|at| file.starts_with(at)));

        // The Secret, as the README has it made.
        let secrets = "/etc/countersign/secrets/";
        assert!(mounts.contains(&secrets.trim_end_matches('/').to_owned()));
        let readme = fs::read_to_string(root().join("deploy/kubernetes/README.md")).unwrap();
        let mut named = 0;
        for (_, rest) in config
            .match_indices(secrets)
            .map(|(at, _)| config.split_at(at + secrets.len()))
        {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                .collect();
            assert!(readme.contains(&format!("--from-file={name}=")), "{name}");
            fs::write(dir.path().join(&name), "11".repeat(32)).unwrap();
            named += 1;
        }
        assert!(named > 1, "{overlay}");
        let there = config.replace(secrets, &format!("{}/", dir.path().display()));
        let state = "/var/lib/countersign";
        assert!(!there.contains(state) || mounts.contains(&state.to_owned()));
        fs::write(dir.path().join("proxy.yaml"), there).unwrap();
        let whole = run(dir.path(), &["check", "--config", "proxy.yaml"]);
        assert_eq!(whole.code, Some(0), "{overlay}: {}", whole.stderr);
    }
}

#[test]
fn the_image_runs_the_program_as_nobody_without_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::new(&dir);
    let Some(container) = image.container() else {
        return;
    };
    let version = image.buildah(&[
        "run",
        "--isolation",
        "chroot",
        &container,
        "--",
        "/countersign",
        "--version",
    ]);
    assert!(version.starts_with("countersign "), "{version}");
    let root = PathBuf::from(image.buildah(&["mount", &container]).trim());
    for shell in ["bin/sh", "usr/bin/sh", "bin/bash", "busybox"] {
        assert!(!root.join(shell).exists(), "{shell}");
    }
    assert!(root.join("etc/ssl/certs/ca-certificates.crt").exists());
    let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(passwd.contains(":65532:65532:"), "{passwd}");

    // As a pod runs it: the configuration mounted, its place known from the image.
    let config = dir.path().join("config");
    fs::create_dir(&config).unwrap();
    let yaml = "\
listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 127.0.0.1:0 }
drain: { delay: 0s }
vendors: { v: { upstream: \"https://127.0.0.1:1\" } }
";
    fs::write(config.join("proxy.yaml"), yaml).unwrap();
    let mut serving = image
        .command(&["run", "--isolation", "chroot", "--volume"])
        .arg(format!("{}:/etc/countersign/config:ro", config.display()))
        .args([&container, "--", "/countersign", "serve"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let admin = BufReader::new(serving.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            said.push_str(&line);
            said.push('\n');
            let (before, address) = line.split_once("address=")?;
            before
                .contains(" admin ")
                .then(|| address.trim().to_owned())
        });
    let admin = admin.unwrap_or_else(|| panic!("it did not start:\n{said}"));
    let asked = format!("GET /livez HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    let answer = exchange(admin.parse().unwrap(), asked.as_bytes());
    assert_eq!(status_of(&answer), 200, "{answer}");
    // It runs as the user `nobody`, no matter who starts it.
    let nobody = fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let file = |name: &str| fs::read_to_string(process.path().join(name)).unwrap_or_default();
        file("cmdline").starts_with("/countersign\0serve")
            && file("status").contains("\nUid:\t65532\t65532\t")
    });
    assert!(nobody);
    signal(serving.id(), "TERM");
    eventually("gone", || serving.try_wait().unwrap());
}

/// buildah with a place for images of its own.
struct Image<'a> {
    dir: &'a TempDir,
}

impl<'a> Image<'a> {
    fn new(dir: &'a TempDir) -> Self {
        let place = |name: &str| dir.path().join(name).display().to_string();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n",
            place("images"),
            place("running")
        );
        fs::write(dir.path().join("storage.conf"), storage).unwrap();
        Self { dir }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.args(arguments).env(
            "CONTAINERS_STORAGE_CONF",
            self.dir.path().join("storage.conf"),
        );
        command
    }

    fn buildah(&self, arguments: &[&str]) -> String {
        let done = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "buildah {arguments:?}: {said}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// A container of the image that `make image` makes, from this build. `None`, said loudly,
    /// where no container can run: within another one, often.
    fn container(&self) -> Option<String> {
        let have = Command::new("buildah").arg("--version").output();
        assert!(
            have.is_ok(),
            "Debian package buildah (`make setup-test` installs it)"
        );
        // Only what the machine lacks may be a reason not to test.
        let empty = self.command(&["from", "scratch"]).output().unwrap();
        let name = String::from_utf8_lossy(&empty.stdout).trim().to_owned();
        let mounted = self.command(&["mount", &name]).output().unwrap();
        if !empty.status.success() || !mounted.status.success() {
            let why = String::from_utf8_lossy(&empty.stderr).into_owned()
                + &String::from_utf8_lossy(&mounted.stderr);
            // Past the test runner, which keeps what passing tests print.
            let mut stderr = std::io::stderr();
            let _ = writeln!(
                stderr,
                "SKIPPED: the container image: buildah cannot work here: {why}"
            );
            return None;
        }
        let made = Command::new("sh")
            .arg(root().join("deploy/image.sh"))
            .arg(countersign().get_program())
            .arg("countersign-under-test")
            .env(
                "CONTAINERS_STORAGE_CONF",
                self.dir.path().join("storage.conf"),
            )
            // This build is for debugging.
            .env("COUNTERSIGN_IMAGE_MB", "200")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        assert!(said.contains("runs as user 65532:65532"), "{said}");
        let container = self.buildah(&["from", "--pull-never", "countersign-under-test"]);
        Some(container.trim().to_owned())
    }
}

/// What `kubectl apply -k deploy/OVERLAY` would apply.
fn rendered(overlay: &str) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let deploy = dir.path().join("deploy");
    let copied = Command::new("cp")
        .arg("-r")
        .args([&root().join("deploy"), &deploy])
        .status();
    assert!(copied.unwrap().success());
    let everything = deploy.join("kubernetes/overlays/everything");
    fs::create_dir(&everything).unwrap();
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../replicas"],
        "components": ["../../components/ingress", "../../../prometheus"],
    });
    fs::write(
        everything.join("kustomization.yaml"),
        kustomization.to_string(),
    )
    .unwrap();

    let ours = root().join("tests/support/peers/kubectl/kubectl");
    let kubectl = if ours.exists() {
        ours
    } else {
        "kubectl".into()
    };
    let made = Command::new(kubectl)
        .arg("kustomize")
        .arg(deploy.join(overlay))
        .output()
        .unwrap_or_else(|cause| panic!("kubectl: {cause} (`make setup-test` installs it)"));
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(
        made.status.success() && said.is_empty(),
        "{overlay}: {said}"
    );
    let documents = serde_yaml::Deserializer::from_slice(&made.stdout);
    documents
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn one(objects: &[Value], kind: &str) -> Value {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind}")).clone()
}

fn pod(overlay: &str) -> Value {
    one(&rendered(overlay), "Deployment")["spec"]["template"]["spec"].clone()
}

fn containers(pod: &Value) -> Vec<Value> {
    let mut containers = list(&pod["containers"]);
    containers.extend(list(&pod["initContainers"]));
    containers
}

/// The proxy among them.
fn ours(pod: &Value) -> Value {
    let mut containers = containers(pod).into_iter();
    containers.find(|one| one["name"] == "countersign").unwrap()
}

fn proxy_yaml(objects: &[Value]) -> String {
    text(&one(objects, "ConfigMap")["data"]["proxy.yaml"])
}

fn api(object: &Value) -> String {
    text(&object["apiVersion"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_connections_that_security_md_promises_fit_the_shipped_memory_limit() {
    let security = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    for overlay in APPLIED {
        for object in rendered(overlay) {
            if text(&object["kind"]) != "Deployment" {
                continue;
            }
            let pod = &object["spec"]["template"]["spec"];
            let containers = [&pod["containers"], &pod["initContainers"]];
            let ours = containers
                .into_iter()
                .filter_map(Value::as_array)
                .flatten()
                .find(|container| container["name"] == "countersign")
                .unwrap();
            let limit = text(&ours["resources"]["limits"]["memory"]);
            let mebibytes: u64 = limit.strip_suffix("Mi").unwrap().parse().unwrap();
            let most = budget::connections(None, Some(mebibytes << 20));
            let promised = format!(
                "{},{:03} in the {mebibytes} MiB of the shipped pod",
                most / 1000,
                most % 1000
            );
            assert!(security.contains(&promised), "{overlay}: {promised}");
        }
    }
}

#[test]
fn the_way_to_the_api_server_is_closed_until_somebody_writes_its_address() {
    let object = rendered("kubernetes/overlays/replicas")
        .into_iter()
        .find(|object| object["metadata"]["name"] == "countersign-to-api-server")
        .unwrap();
    assert_eq!(object["spec"]["policyTypes"], json!(["Egress"]));
    let egress = &object["spec"]["egress"];
    assert!(egress.as_array().is_none_or(Vec::is_empty), "{egress}");
}
