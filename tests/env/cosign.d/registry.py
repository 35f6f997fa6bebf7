"""Pushes a module to a registry, and writes down what a registry has: no other tool, so that nothing is made up."""
import base64, hashlib, json, sys, urllib.request

OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def call(method, url, body=None, kind=None):
    request = urllib.request.Request(url, data=body, method=method)
    request.add_header("Accept", f"{OCI}, {INDEX}")
    if kind:
        request.add_header("Content-Type", kind)
    with urllib.request.urlopen(request) as answer:
        return answer.read(), answer.headers


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def push(base, tag):
    # A module without anything, but for a name that tells one from the other.
    name = tag.encode()
    module = b"\0asm\x01\0\0\0" + b"\0" + bytes([1 + len(name)]) + bytes([len(name)]) + name
    config = json.dumps({"created": "1970-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip1",
        "layerDigests": [digest(module)]}).encode()
    for blob in (module, config):
        _, headers = call("POST", f"{base}/blobs/uploads/", b"")
        at = headers["Location"]
        call("PUT", f"{at}{'&' if '?' in at else '?'}digest={digest(blob)}", blob, "application/octet-stream")
    describe = lambda kind, blob: {"mediaType": kind, "digest": digest(blob), "size": len(blob)}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI,
        "config": describe("application/vnd.wasm.config.v0+json", config),
        "layers": [describe("application/wasm", module)]}).encode()
    call("PUT", f"{base}/manifests/{tag}", manifest, OCI)
    print(digest(manifest))


def record(base, key, version):
    text = lambda data: data.decode() if data.isascii() and b"\0" not in data else {"base64": base64.b64encode(data).decode()}
    found, blobs = [], {}

    def manifest(name):
        data, headers = call("GET", f"{base}/manifests/{name}")
        parsed = json.loads(data)
        # What an index leads to comes before it: registries want it so.
        for entry in parsed.get("manifests", []):
            manifest(entry["digest"])
        for part in [parsed["config"], *parsed["layers"]] if "config" in parsed else []:
            blobs[part["digest"]] = text(call("GET", f"{base}/blobs/{part['digest']}")[0])
        if all(name != other["name"] for other in found):
            found.append({"name": name, "mediaType": headers["Content-Type"], "manifest": data.decode()})

    for tag in sorted(json.loads(call("GET", f"{base}/tags/list")[0])["tags"]):
        manifest(tag)
    made = json.loads(version or "{}").get("gitVersion", "")
    json.dump({"cosign": made, "publicKey": open(key).read(), "blobs": blobs, "manifests": found}, sys.stdout, indent=1)
    print()


command, address, *rest = sys.argv[1:]
{"push": push, "record": record}[command](f"http://{address}/v2/redact", *rest)
