//! The image manifest (DATA_MODEL.md, `RuntimeImageToolchain`), which is one for the whole gate.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};

use crate::{
    chain::chain,
    clock,
    image::{Manifest, ManifestError},
    model::{Failure, Image, ImageReport, Mono},
    watch::Watcher,
};

/// Between two looks at a manifest whose file system does not tell of changes, and as a backstop for one that does.
const LOOK_EVERY: Duration = Duration::from_secs(60);

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

/// Looks at the manifest once.
pub fn look(path: &Path, seen: Option<Mono>) -> ImageReport {
    let started = clock::now().mono;
    let (image, problem) = match read(path) {
        Ok(image) => (image, None),
        Err(problem) => (None, Some(problem)),
    };
    ImageReport { image, problem, started, seen: seen.unwrap_or(started) }
}

/// `None` if there is no manifest.
fn read(path: &Path) -> Result<Option<Image>, Failure> {
    let manifest = match Manifest::read(path) {
        Ok(manifest) => manifest,
        Err(ManifestError::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure {
                detail: format!("of the image manifest {} the gate failed to {}", path.display(), chain(&error)),
                remedy: "build the image again, with worker-gate image record and verify as its last steps".to_owned(),
            });
        }
    };
    Ok(Some(Image {
        manifest_hash: manifest.hash(),
        state: manifest.state,
        base_image: Some(manifest.base_image),
        node_version: Some(manifest.node_version),
        codex_cli_version: Some(manifest.codex_cli_version),
        spec_kit_version: Some(manifest.spec_kit_version),
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;
    use crate::{image::tests::manifest, model::ImageState};

    const SOON: Duration = Duration::from_secs(20);

    fn write(path: &Path, state: ImageState) {
        Manifest { state, ..manifest() }.write(path).unwrap();
    }

    #[test]
    fn a_manifest_is_read_and_what_is_none_or_was_edited_is_refused_without_quoting_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.json");
        assert_eq!(read(&path), Ok(None));
        write(&path, ImageState::Verified);
        let image = read(&path).unwrap().unwrap();
        assert_eq!((image.state, image.codex_cli_version.as_deref()), (ImageState::Verified, Some("0.169.0")));
        assert_eq!(image.manifest_hash.len(), 64);
        write(&path, ImageState::Built);
        let edited = fs::read_to_string(&path).unwrap().replace("\"built\"", "\"verified\"");
        fs::write(&path, edited).unwrap();
        assert!(read(&path).unwrap_err().detail.contains("it was edited after it was written"));
        fs::write(&path, "{\"state\": \"secret\"}").unwrap();
        let problem = read(&path).unwrap_err();
        assert!(problem.detail.contains("image.json") && !problem.detail.contains("secret"), "{problem:?}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read(&path).unwrap_err().detail.contains("failed to read it"));
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
        write(&path, ImageState::Built);
        assert_eq!(next().await, Some(ImageState::Built));
        write(&path, ImageState::Verified);
        assert_eq!(next().await, Some(ImageState::Verified));
        fs::remove_file(&path).unwrap();
        assert_eq!(next().await, None);
        drop(reports);
        timeout(SOON, watching).await.unwrap().unwrap();
        task.abort();
    }
}
