// The configuration of `workerd serve`, made from what wrangler.toml says.
//
// workerd reads Cap'n Proto text and knows nothing of wrangler.toml; Cloudflare has no public generator. This one covers
// what this project uses: modules, [vars], Durable Object namespaces with SQLite, storage on local disk.
//
// Invariants:
// - A namespace's `uniqueKey` is "<worker>-<Class>" forever: workerd derives object ids and file names from it, so a
//   change of it loses every session, route and retained message on disk.
// - No value of an environment variable is written: TRELLIS_* become `fromEnvironment` bindings, which workerd reads from
//   its own environment at start, so that a secret never touches the disk. For the same reason workerd reads the private
//   key from where it is.

/** One file of the bundle; `path` is relative to the configuration file. */
export interface WorkerModule {
  readonly name: string;
  readonly path: string;
}

/** What workerd runs: the bundle, entry module first, and what wrangler.toml says of it. */
export interface WorkerDefinition {
  readonly name: string;
  readonly modules: readonly WorkerModule[];
  readonly compatibilityDate: string;
  readonly compatibilityFlags: readonly string[];
  readonly vars: Readonly<Record<string, unknown>>;
  readonly durableObjects: readonly { readonly binding: string; readonly className: string }[];
}

/** Where it runs. */
export interface Deployment {
  /** host:port; an IPv6 host in brackets. */
  readonly address: string;
  /** Where links with client certificates come in; they need `keypair` and `cacertfile`. */
  readonly linkAddress: string | undefined;
  /** Paths of PEM files relative to the configuration file: workerd finds no absolute ones. */
  readonly keypair: { readonly certfile: string; readonly keyfile: string } | undefined;
  readonly cacertfile: string | undefined;
  /** Absolute directory of the Durable Objects' databases. */
  readonly storage: string;
  /** Environment variables that the worker sees as bindings of the same name. */
  readonly environment: readonly string[];
  /** Text bindings besides [vars], LOOPBACK for one. */
  readonly bindings: Readonly<Record<string, string>>;
}

/** `ctx.props` of a request that came with a client certificate which was verified. */
const certifiedProps = { clientCertificate: "verified" };

const moduleKinds: Readonly<Record<string, string>> = {
  js: "esModule",
  mjs: "esModule",
  cjs: "commonJsModule",
  wasm: "wasm",
  txt: "text",
  html: "text",
  css: "text",
  svg: "text",
  json: "json",
  bin: "data",
};

/**
 * The text of the configuration file. The socket named "http" speaks TLS if there is a keypair; the one named "links"
 * tells the worker, in `ctx.props`, that whoever comes by it has shown a certificate.
 * Throws an Error on a module whose kind it does not know.
 */
export function workerdConfig(worker: WorkerDefinition, deployment: Deployment): string {
  const { keypair, cacertfile } = deployment;
  const trusted = cacertfile === undefined ? [] : [`trustedCertificates = [embed ${text(cacertfile)}]`];
  const shown =
    keypair === undefined
      ? []
      : [`keypair = (privateKey = embed ${text(keypair.keyfile)}, certificateChain = embed ${text(keypair.certfile)})`];
  // Other deployments, and servers of discovery, may be on this machine or in its network.
  const network = (...tls: string[]): string =>
    `network = (allow = ["public", "private"], tlsOptions = (${["trustBrowserCas = true", ...trusted, ...tls].join(", ")}))`;
  const services = [
    `(name = "worker", worker = .worker)`,
    `(name = "storage", disk = (path = ${text(deployment.storage)}, writable = true))`,
    `(name = "internet", ${network()})`,
    ...(keypair === undefined ? [] : [`(name = "links", ${network(...shown)})`]),
  ];
  const listener = keypair === undefined ? "http = ()" : `https = (options = (), tlsOptions = (${shown.join(", ")}))`;
  const sockets = [`(name = "http", address = ${text(deployment.address)}, ${listener}, service = "worker")`];
  if (deployment.linkAddress !== undefined) {
    const tls = [...shown, "requireClientCerts = true", ...trusted].join(", ");
    const service = `(name = "worker", props = (json = ${text(JSON.stringify(certifiedProps))}))`;
    sockets.push(
      `(name = "links", address = ${text(deployment.linkAddress)}, https = (options = (), tlsOptions = (${tls})), service = ${service})`,
    );
  }
  const bindings = [
    // The environment overrides a variable of the same name; workerd refuses two bindings of one name.
    ...Object.entries(worker.vars)
      .filter(([name]) => !deployment.environment.includes(name) && !(name in deployment.bindings))
      .map(([name, value]) =>
        typeof value === "string"
          ? `(name = ${text(name)}, text = ${text(value)})`
          : `(name = ${text(name)}, json = ${text(JSON.stringify(value))})`,
      ),
    ...Object.entries(deployment.bindings).map(([name, value]) => `(name = ${text(name)}, text = ${text(value)})`),
    ...deployment.environment.map((name) => `(name = ${text(name)}, fromEnvironment = ${text(name)})`),
    ...worker.durableObjects.map(
      ({ binding, className }) =>
        `(name = ${text(binding)}, durableObjectNamespace = (className = ${text(className)}))`,
    ),
    ...(keypair === undefined ? [] : ['(name = "LINKS", service = "links")']),
  ];
  const classNames = [...new Set(worker.durableObjects.map(({ className }) => className))];
  const namespaces = classNames.map(
    (className) =>
      `(className = ${text(className)}, uniqueKey = ${text(`${worker.name}-${className}`)}, enableSql = true)`,
  );
  return `# Written at every start; edit wrangler.toml instead.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = ${list(services)},
  sockets = ${list(sockets)},
);

const worker :Workerd.Worker = (
  modules = ${list(worker.modules.map(moduleEntry))},
  compatibilityDate = ${text(worker.compatibilityDate)},
  compatibilityFlags = ${list(worker.compatibilityFlags.map(text))},
  bindings = ${list(bindings)},
  durableObjectNamespaces = ${list(namespaces)},
  durableObjectStorage = (localDisk = "storage"),
);
`;
}

function moduleEntry({ name, path }: WorkerModule): string {
  const kind = moduleKinds[name.slice(name.lastIndexOf(".") + 1)];
  if (kind === undefined) throw new Error(`${name}: no kind of module that workerd knows`);
  return `(name = ${text(name)}, ${kind} = embed ${text(path)})`;
}

function list(items: readonly string[]): string {
  return items.length === 0 ? "[]" : `[\n${items.map((item) => `    ${item},\n`).join("")}  ]`;
}

/** A string as a Cap'n Proto literal: C escapes, UTF-8 taken as it is. */
function text(value: string): string {
  let escaped = "";
  for (const char of value) {
    if (char === '"' || char === "\\") escaped += `\\${char}`;
    else if (char < " " || char === "\u007f") escaped += `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`;
    else escaped += char;
  }
  return `"${escaped}"`;
}
