// Where snapshots are kept, as one text: a folder, s3://bucket/prefix, mysql://user@host/db or nats://bucket. Never holds a secret.

export type StoreAddress =
  /** As written: relative to whoever wrote it. */
  | { readonly kind: "folder"; readonly folder: string }
  | {
      readonly kind: "s3";
      readonly bucket: string;
      /** Without slashes at its ends; may be empty. */
      readonly prefix: string;
      readonly endpoint: string | null;
      readonly region: string | null;
    }
  | {
      readonly kind: "mysql";
      readonly host: string;
      readonly port: number;
      readonly user: string;
      readonly database: string;
    }
  | { readonly kind: "nats"; readonly bucket: string };

const forms = "a folder, s3://BUCKET/PREFIX, mysql://USER@HOST/DB or nats://BUCKET";

/** An address, or what is wrong with the text; that never shows what stands where a password would. */
export function parseStore(text: string): StoreAddress | string {
  const [, scheme, rest = ""] = /^([a-z][a-z0-9+.-]*):\/\/(.*)$/is.exec(text) ?? [];
  if (scheme === undefined) return { kind: "folder", folder: text };
  switch (scheme.toLowerCase()) {
    case "s3":
      return parseS3(rest);
    case "mysql":
      return parseMysql(text);
    case "nats":
      return /^[A-Za-z0-9_-]{1,63}$/.test(rest)
        ? { kind: "nats", bucket: rest }
        : "is not nats://BUCKET: a bucket has 1 to 63 of letters, digits, _ and -; its servers are those of log.nats";
    default:
      return `is not known as a place for snapshots: ${forms}`;
  }
}

function parseS3(rest: string): StoreAddress | string {
  if (rest.includes("@")) {
    return "has credentials in it: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
  }
  const [, bucket = "", path = "", query = ""] = /^([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?$/.exec(rest) ?? [];
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(bucket)) {
    return "is not s3://BUCKET/PREFIX: a bucket has 3 to 63 of a-z, 0-9, . and -";
  }
  const prefix = path.replaceAll(/^\/+|\/+$/g, "");
  if (prefix !== "" && !prefix.split("/").every((part) => /^[A-Za-z0-9!_.*'()-]+$/.test(part) && !/^\.+$/.test(part))) {
    return "is not s3://BUCKET/PREFIX: a prefix has segments of letters, digits and -_.*'()!";
  }
  const asked = new URLSearchParams(query);
  for (const name of asked.keys()) {
    if (name !== "endpoint" && name !== "region") return "may have ?endpoint=…&region=… behind it, and nothing else";
  }
  const endpoint = asked.get("endpoint");
  const region = asked.get("region");
  const wrong = endpoint === null ? null : endpointFault(endpoint);
  if (wrong !== null) return `its endpoint ${wrong}`;
  if (region !== null && !isRegion(region)) return "its region is not one such as eu-central-1";
  return { kind: "s3", bucket, prefix, endpoint: endpoint === null ? null : trimmed(endpoint), region };
}

/** Also of AWS_ENDPOINT_URL. */
export function endpointFault(text: string): string | null {
  const example = "is not a URL such as https://s3.example.org";
  if (!URL.canParse(text)) return example;
  const { protocol, username, password, search, hash } = new URL(text);
  if (username !== "" || password !== "") return "has credentials in it: they come from AWS_ACCESS_KEY_ID";
  return (protocol === "http:" || protocol === "https:") && search === "" && hash === "" ? null : example;
}

export const isRegion = (text: string): boolean => /^[a-z0-9-]{1,40}$/i.test(text);

export const trimmed = (url: string): string => url.replace(/\/+$/, "");

function parseMysql(text: string): StoreAddress | string {
  const example = "is not mysql://USER@HOST:PORT/DB";
  if (!URL.canParse(text)) return example;
  const { username, password, hostname, port, pathname, search, hash } = new URL(text);
  if (password !== "") return "has a password in it: it belongs into storePasswordFile";
  const database = decoded(pathname.slice(1));
  const user = decoded(username);
  if (search !== "" || hash !== "") return `${example}, and nothing behind it`;
  if (user === null || user === "" || hostname === "" || database === null || !/^[\w$-]{1,64}$/.test(database)) {
    return example;
  }
  return {
    kind: "mysql",
    host: hostname.replace(/^\[|\]$/g, ""),
    port: port === "" ? 3306 : Number(port),
    user,
    database,
  };
}

function decoded(text: string): string | null {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

/** What a person may have written into a store's address although it is a secret, for whoever quotes the line it stands in. */
export function secretsOfStore(text: string): string[] {
  const [, user = ""] = /^[a-z][a-z0-9+.-]*:\/\/([^?#]*)@/is.exec(text) ?? [];
  const inQuery = [...text.matchAll(/[?&]([^=&#]*)=([^&#]*)/g)]
    .filter(([, name]) => name !== "endpoint" && name !== "region")
    .map(([, , value = ""]) => value);
  return [user.slice(user.indexOf(":") + 1), ...inQuery].filter((value) => value !== "" && value !== user);
}
