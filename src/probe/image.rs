//! The image manifest (DATA_MODEL.md, `RuntimeImageToolchain`), which is one for the whole gate.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};

use crate::{
    clock, hash,
    model::{Failure, Image, ImageReport, ImageState},
    watch::Watcher,
};

/// A manifest has some kilobytes; most of them are logs of an installation.
const LARGEST: u64 = 16 * 1024 * 1024;
/// Between two looks at a manifest whose file system does not tell of changes, and as a backstop for one that does.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Of a manifest, what decides an admission; the rest is for `worker-gate image`.
#[derive(Debug, Deserialize)]
struct Manifest {
    state: ImageState,
    base_image: Option<String>,
    node_version: Option<String>,
    codex_cli_version: Option<String>,
    spec_kit_version: Option<String>,
}

/// Tells what the manifest says, at once and whenever it has changed, until nobody listens. An empty path has none.
pub async fn watch(path: PathBuf, watcher: Watcher, reports: mpsc::Sender<ImageReport>) {
    let path = Arc::new(std::path::absolute(&path).unwrap_or(path));
    let subject = watcher.subject(if path.is_absolute() { vec![path.to_path_buf()] } else { Vec::new() });
    let (mut told, mut seen) = (None, None);
    loop {
        let (path, at) = (path.clone(), seen.take());
        let Ok(report) = spawn_blocking(move || look(&path, at)).await else { return };
        let said = Some((report.image.clone(), report.problem.clone()));
        if said != told && reports.send(report).await.is_err() {
            return;
        }
        told = said;
        tokio::select! {
            touched = subject.touched() => seen = Some(touched.at),
            () = sleep(LOOK_EVERY) => {}
            () = reports.closed() => return,
        }
    }
}

fn look(path: &Path, seen: Option<crate::model::Mono>) -> ImageReport {
    let started = clock::now().mono;
    let (image, problem) = match read(path) {
        Ok(image) => (image, None),
        Err(problem) => (None, Some(problem)),
    };
    ImageReport { image, problem, started, seen: seen.unwrap_or(started) }
}

/// `None` if there is no manifest.
fn read(path: &Path) -> Result<Option<Image>, Failure> {
    let failed = |what: String| Failure {
        detail: format!("the image manifest {} {what}", path.display()),
        remedy: "build the image again, with its manifest".to_owned(),
    };
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > LARGEST => return Err(failed("is larger than 16 MiB".to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(format!("cannot be read: {error}"))),
    }
    let manifest: Manifest = serde_json::from_slice(&bytes)
        // Not the error's own text, which may quote what stands there.
        .map_err(|error| failed(format!("is no manifest, at line {}, column {}", error.line(), error.column())))?;
    let Manifest { state, base_image, node_version, codex_cli_version, spec_kit_version } = manifest;
    Ok(Some(Image {
        manifest_hash: hash::sha256(&bytes),
        state,
        base_image,
        node_version,
        codex_cli_version,
        spec_kit_version,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_manifest_is_read_and_what_is_none_is_refused_without_quoting_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.json");
        assert_eq!(read(&path), Ok(None));
        fs::write(&path, r#"{"state": "verified", "codex_cli_version": "0.169.0", "install_logs": ["x"]}"#).unwrap();
        let image = read(&path).unwrap().unwrap();
        assert_eq!((image.state, image.codex_cli_version.as_deref()), (ImageState::Verified, Some("0.169.0")));
        assert_eq!((image.base_image, image.manifest_hash.len()), (None, 64));
        fs::write(&path, "{\"state\": \"secret\"}").unwrap();
        let problem = read(&path).unwrap_err();
        assert!(problem.detail.contains("image.json is no manifest, at line 1") && !problem.detail.contains("secret"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read(&path).unwrap_err().detail.contains("cannot be read"));
    }

    #[tokio::test]
    async fn a_manifest_that_comes_changes_or_goes_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.json");
        let (watcher, task) = Watcher::start();
        let task = tokio::spawn(task.run());
        let (send, mut reports) = mpsc::channel(4);
        let watching = tokio::spawn(watch(path.clone(), watcher, send));
        let mut next = async || timeout(SOON, reports.recv()).await.unwrap().unwrap().image.map(|image| image.state);
        assert_eq!(next().await, None);
        fs::write(folder.path().join("new"), r#"{"state": "built"}"#).unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(next().await, Some(ImageState::Built));
        fs::write(folder.path().join("new"), r#"{"state": "verified"}"#).unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(next().await, Some(ImageState::Verified));
        fs::remove_file(&path).unwrap();
        assert_eq!(next().await, None);
        drop(reports);
        timeout(SOON, watching).await.unwrap().unwrap();
        task.abort();
    }
}
