"""One row for each way of breaking an image: what it is, the rule that must not hold, and what does it, as root in a good image."""

# Changes what the manifest says, and seals it again, as somebody does who knows how.
FORGE = """
import hashlib, json, sys
path = "/etc/worker-gate/image.json"
manifest = json.load(open(path))
del manifest["hash"]
exec(sys.argv[1])
text = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False)
json.dump({**manifest, "hash": hashlib.sha256(text.encode()).hexdigest()}, open(path, "w"))
"""
LIST = "npm:@openai/codex {codex}\npypi:specify-cli {spec_kit}\n"
AGAIN = "worker-gate image record --base-image python:3.11-slim"
VERIFY = "worker-gate image verify --json --offline /tmp/published"


def forge(change):
    return f"python3 -c '{FORGE}' '{change}'"


def replace(program, text):
    """Another program in the place of one; $real is what stood there."""
    return f"""real=$(readlink -f {program}); mv "$real" "$real.real"; cat >"$real" <<END
#!/bin/sh
{text}
exec "$real.real" "\\$@"
END
chmod 755 "$real"
"""


def says(program, version):
    return replace(program, f'[ "\\$1" != --version ] || {{ echo {version}; exit; }}')


ROWS = [
    ("the base image is not an approved one", "base_image", "worker-gate image record --base-image debian:sid"),
    ("the manifest names another base image", "base_image", forge('manifest["base_image"] = "debian:sid"')),
    ("Node.js is too old", "node_version", says("/usr/bin/node", "v16.20.2") + AGAIN),
    ("Node.js is no release", "node_version", says("/usr/bin/node", "v20.0.0-rc.1") + AGAIN),
    ("Node.js was changed after the record", "node_is_installed", says("/usr/bin/node", "v22.1.0")),
    ("a byte was added to Node.js", "node_is_as_recorded", "echo >>/usr/bin/node"),
    ("the Codex CLI has no version", "codex_cli_version", forge('manifest["codex_cli_version"] = ""')),
    ("the Spec Kit CLI has a tag for a version", "spec_kit_version", forge('manifest["spec_kit_version"] = "latest"')),
    ("the Codex CLI was updated after the record", "codex_cli_is_installed", says("/usr/local/bin/codex", "codex-cli 0.170.0")),
    ("the Spec Kit CLI is gone", "spec_kit_is_installed", "rm /usr/local/bin/speckit"),
    ("the Codex CLI's version was never published", "codex_cli_is_published", "sed -i 1d /tmp/published"),
    ("the Spec Kit CLI's version was never published", "spec_kit_is_published",
     "sed -i 's/specify-cli .*/specify-cli 0.0.1/' /tmp/published"),
    ("no registry answers for npm", "codex_cli_is_published", "verify='worker-gate image verify --json'"),
    ("the template was edited", "template", "echo 'model = \"o9\"' >>/etc/codex/config.toml"),
    ("the template is root's alone", "template_is_readable", "chmod 600 /etc/codex/config.toml"),
    ("the Codex CLI left no log", "codex_cli_is_logged",
     forge('manifest["install_logs"] = [log for log in manifest["install_logs"] if "codex" not in log]')),
    ("the Spec Kit CLI left no log", "spec_kit_is_logged", forge('manifest["install_logs"] = []')),
    ("somebody was in the Codex CLI", "codex_cli_is_as_recorded", 'echo "// mine" >>"$(readlink -f /usr/local/bin/codex)"'),
    ("somebody was in the Spec Kit CLI", "spec_kit_is_as_recorded", 'echo "# mine" >>"$(readlink -f /usr/local/bin/specify)"'),
    ("the Spec Kit CLI cannot show its help", "smoke: speckit --help",
      replace("/usr/local/bin/speckit", '[ "\\$1" != --help ] || exit 3') + AGAIN),
    ("the manifest was edited", "manifest", "sed -i 's/verified/approved/' /etc/worker-gate/image.json"),
    ("there is no manifest", "manifest", "rm /etc/worker-gate/image.json"),
]
