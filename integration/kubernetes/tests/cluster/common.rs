//! A real API server on the node of a world, the agent that watches it, and objects for both.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use namegate_testbed::{Agent, Options, Pod, World};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's name in Kubernetes.
pub(crate) const NODE: &str = "node1";
/// The account of the agent, and where its rights stand.
const ACCOUNT: &str = "system:serviceaccount:kube-system:namegate";
const MANIFEST: &str = include_str!("../../../deploy/kubernetes/namegate.yaml");
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// etcd and the API server, in the node's network namespace.
pub(crate) struct Server<'a> {
    world: &'a World,
    folder: TempDir,
    etcd: Child,
    api: Option<Child>,
}

/// A kind of objects.
#[derive(Clone, Copy)]
pub(crate) struct Kind(pub(crate) &'static str, pub(crate) &'static str, pub(crate) &'static str);

pub(crate) const POD: Kind = Kind("v1", "Pod", "pods");
pub(crate) const NAMESPACE: Kind = Kind("v1", "Namespace", "namespaces");
pub(crate) const SERVICE: Kind = Kind("v1", "Service", "services");
pub(crate) const NODES: Kind = Kind("v1", "Node", "nodes");
pub(crate) const EVENT: Kind = Kind("events.k8s.io/v1", "Event", "events");
const ROLE: Kind = Kind("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles");
const BINDING: Kind = Kind("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings");
pub(crate) const CRD: Kind = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions");
pub(crate) const CNP: Kind = Kind("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies");
pub(crate) const NETWORK_POLICY: Kind = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies");

impl Kind {
    fn resource(self) -> ApiResource {
        let (group, version) = self.0.rsplit_once('/').unwrap_or(("", self.0));
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, self.1), self.2)
    }
}

/// A program that `cargo xtask cluster up` keeps in the cache, of whichever version.
fn program(prefix: &str, name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).unwrap().join("namegate");
    let folders = fs::read_dir(&cache).into_iter().flatten().filter_map(Result::ok);
    let named = folders.filter(|folder| folder.file_name().to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = named.map(|folder| folder.path().join("bin").join(name)).collect();
    found.retain(|path| path.is_file());
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {name} below {}: run `cargo xtask cluster up`", cache.display()))
}

impl<'a> Server<'a> {
    pub(crate) fn start(world: &'a World) -> Self {
        let folder = tempfile::Builder::new().prefix("namegate-api-").tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let tokens = format!("admintoken,admin,admin,system:masters\nagenttoken,{ACCOUNT},agent\n");
        fs::write(path("tokens.csv"), tokens).unwrap();
        for (file, token) in [("kubeconfig", "admintoken"), ("agent-kubeconfig", "agenttoken")] {
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "x",
                "clusters": [{"name": "c",
                    "cluster": {"server": "https://127.0.0.1:16443", "insecure-skip-tls-verify": true}}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            });
            fs::write(path(file), config.to_string()).unwrap();
        }
        let key = Command::new("openssl").args(["genrsa", "-out", &path("sa.key"), "2048"]).output().unwrap();
        assert!(key.status.success(), "{key:?}");
        let etcd = Self::spawn(
            world,
            folder.path(),
            "etcd",
            program("etcd-", "etcd"),
            &[
                &format!("--data-dir={}", path("etcd")),
                "--listen-client-urls=http://127.0.0.1:12379",
                "--advertise-client-urls=http://127.0.0.1:12379",
                "--listen-peer-urls=http://127.0.0.1:12380",
                "--unsafe-no-fsync",
            ],
        );
        let mut server = Self { world, folder, etcd, api: None };
        server.begin();
        server.grant();
        server
    }

    /// Gives the agent's account what the manifest gives it, and no more.
    fn grant(&self) {
        let documents = MANIFEST.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
        for object in documents {
            match object["kind"].as_str().unwrap() {
                "ClusterRole" => self.apply(ROLE, object),
                "ClusterRoleBinding" => self.apply(BINDING, object),
                _ => {}
            }
        }
    }

    /// Starts the API server, and waits until it answers.
    pub(crate) fn begin(&mut self) {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let child = Self::spawn(
            self.world,
            self.folder.path(),
            "kube-apiserver",
            program("kubernetes-1", "kube-apiserver"),
            &[
                "--etcd-servers=http://127.0.0.1:12379",
                &format!("--cert-dir={}", path("certs")),
                &format!("--service-account-key-file={}", path("sa.key")),
                &format!("--service-account-signing-key-file={}", path("sa.key")),
                "--service-account-issuer=https://localhost",
                &format!("--token-auth-file={}", path("tokens.csv")),
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--secure-port=16443",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
                "--disable-admission-plugins=ServiceAccount",
            ],
        );
        self.api = Some(child);
        wait("the API server", || {
            let namespaces = self.try_list(NAMESPACE).ok()?;
            namespaces.iter().any(|one| one["metadata"]["name"] == "default").then_some(())
        });
    }

    /// Ends the API server: an outage.
    pub(crate) fn end(&mut self) {
        let mut child = self.api.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn spawn(world: &World, folder: &Path, name: &str, program: PathBuf, arguments: &[&str]) -> Child {
        let log = File::create(folder.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        world.node().call(move || command.spawn()).unwrap()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// With the rights that the agent has in a cluster.
    fn agents_kubeconfig(&self) -> PathBuf {
        self.folder.path().join("agent-kubeconfig")
    }

    /// Does something with a client in the node's namespace.
    pub(crate) fn ask<T, F>(&self, work: impl FnOnce(Client) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let kubeconfig = self.kubeconfig();
        self.world.node().run(async move {
            let read = Kubeconfig::read_from(kubeconfig).unwrap();
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
            work(Client::try_from(config).unwrap()).await
        })
    }

    /// Creates or changes an object, with its status where it has one.
    pub(crate) fn apply(&self, kind: Kind, object: Value) {
        self.ask(move |client| async move { apply(&client, kind, &object).await });
    }

    /// Writes a status as somebody else.
    pub(crate) fn apply_status(&self, kind: Kind, namespace: &'static str, name: &'static str, status: Value) {
        self.ask(move |client| async move {
            let patch = json!({"apiVersion": kind.0, "kind": kind.1, "metadata": {"name": name}, "status": status});
            let parameters = PatchParams::apply("somebody").force();
            api(&client, kind, Some(namespace)).patch_status(name, &parameters, &Patch::Apply(&patch)).await.unwrap();
        });
    }

    pub(crate) fn delete(&self, kind: Kind, namespace: &'static str, name: &'static str) {
        self.ask(move |client| async move {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            api(&client, kind, Some(namespace).filter(|it| !it.is_empty())).delete(name, &now).await.unwrap();
        });
    }

    /// An object as it is now.
    pub(crate) fn get(&self, kind: Kind, namespace: &'static str, name: &'static str) -> Value {
        self.ask(move |client| async move {
            let object = api(&client, kind, Some(namespace).filter(|it| !it.is_empty())).get(name).await.unwrap();
            serde_json::to_value(object).unwrap()
        })
    }

    pub(crate) fn try_list(&self, kind: Kind) -> kube::Result<Vec<Value>> {
        self.ask(move |client| async move {
            let list = api(&client, kind, None).list(&ListParams::default()).await?;
            Ok(list.into_iter().map(|object| serde_json::to_value(object).unwrap()).collect())
        })
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            eprintln!("--- the API server's last lines\n{}", last.join("\n"));
        }
        for child in self.api.iter_mut().chain([&mut self.etcd]) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn api(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind.resource()),
        None => Api::all_with(client.clone(), &kind.resource()),
    }
}

/// Creates or changes an object, with its status where it has one.
pub(crate) async fn apply(client: &Client, kind: Kind, object: &Value) {
    let mut object = object.clone();
    object["apiVersion"] = json!(kind.0);
    object["kind"] = json!(kind.1);
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let api = api(client, kind, object["metadata"]["namespace"].as_str());
    let patch = PatchParams::apply("test").force();
    let status = object.as_object_mut().unwrap().remove("status");
    api.patch(&name, &patch, &Patch::Apply(&object)).await.unwrap_or_else(|error| panic!("{object}: {error}"));
    set_status(&api, &name, status).await;
}

async fn set_status(api: &Api<DynamicObject>, name: &str, status: Option<Value>) {
    if let Some(status) = status {
        let status = json!({"status": status});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }
}

/// Creates an object that is not there: less work for the API server than to apply it.
pub(crate) async fn create(client: &Client, kind: Kind, object: &Value) {
    let mut object = object.clone();
    object["apiVersion"] = json!(kind.0);
    object["kind"] = json!(kind.1);
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let api = api(client, kind, object["metadata"]["namespace"].as_str());
    let status = object.as_object_mut().unwrap().remove("status");
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    set_status(&api, &name, status).await;
}

/// Looks again and again until there is something.
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(PAUSE);
    }
}

/// The definition of a kind of Cilium's policies, as far as the API server needs it. Whether it `keeps` unknown fields of
/// the status: Namegate's own does, Cilium's does not.
pub(crate) fn cilium(kind: &str, plural: &str, scope: &str, keeps: bool) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let text = json!({"type": "string"});
    let condition = json!({
        "type": "object", "required": ["type", "status"],
        "properties": {"type": text, "status": text, "reason": text, "message": text,
            "lastTransitionTime": {"type": "string", "format": "date-time"}},
    });
    let conditions = json!({
        "type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    });
    json!({
        "metadata": {"name": format!("{plural}.cilium.io")},
        "spec": {
            "group": "cilium.io", "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
            "versions": [{
                "name": "v2", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": open, "specs": {"type": "array", "items": open},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": keeps,
                        "properties": {"conditions": conditions}},
                }}},
            }],
        },
    })
}

/// Installs the definition of CiliumNetworkPolicy and waits until it is served.
pub(crate) fn install_cilium(server: &Server<'_>) {
    server.apply(CRD, cilium(CNP.1, CNP.2, "Namespaced", true));
    wait("the kind to be served", || server.try_list(CNP).ok());
}

/// A pod of the world as the API server knows it.
pub(crate) fn object(pod: &Pod, node: &str) -> Value {
    let ips: Vec<_> = pod.spec.ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"name": pod.spec.name, "namespace": pod.spec.namespace, "labels": pod.spec.labels},
        "spec": {"nodeName": node, "serviceAccountName": pod.spec.service_account,
            "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Running", "podIP": pod.spec.ips[0].to_string(), "podIPs": ips},
    })
}

/// Namespaces, the node and every pod of the world that is wanted.
pub(crate) fn populate(server: &Server<'_>, world: &World, pods: &[&str]) {
    for namespace in ["empire", "monitoring", "rebels"] {
        server.apply(NAMESPACE, json!({"metadata": {"name": namespace}}));
    }
    let addresses: Vec<_> =
        world.spec().nodes[0].ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    server.apply(NODES, json!({"metadata": {"name": NODE}, "status": {"addresses": addresses}}));
    for key in pods {
        server.apply(POD, object(world.pod(key), NODE));
    }
}

/// Settings of an agent that knows nobody but from Kubernetes.
pub(crate) fn options(world: &World, server: &Server<'_>) -> Options {
    let unknown = world.pods().iter().map(|pod| pod.spec.key()).collect();
    let settings = json!({"kubernetes": {"node": NODE, "kubeconfig": server.agents_kubeconfig()}});
    Options { unknown, ..Options::default() }.with(settings)
}

/// A request with a body over the agent's socket: status and answer.
pub(crate) fn send(agent: &Agent<'_>, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: namegate\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// The state of an endpoint, by `namespace/name`; nothing where it is not listed.
pub(crate) fn state(agent: &Agent<'_>, key: &str) -> Option<String> {
    let endpoints = agent.json("/v1/endpoint").unwrap();
    let (namespace, name) = key.split_once('/').unwrap();
    let found = endpoints.as_array().unwrap().iter().find(|one| one["namespace"] == namespace && one["name"] == name);
    found.map(|one| one["state"].as_str().unwrap().to_owned())
}
