//! The config file: TOML, strict, all its mistakes in one go.
//!
//! A key that is not known, a value of the wrong type, a word that is not one of those allowed: each
//! is a mistake with its line, its column and what to write instead. Relative paths count from the
//! file's folder. What the file leaves out is left to the flags and the library's defaults.

mod fields;
mod schema;
mod table;
#[cfg(test)]
mod tests;
mod wrong;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use capsa::{DiskImage, SharedDir, VsockDirection};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::failure::{CONFIG, Failure};
use crate::settings::{Origin, Settings};
use crate::spans::SourceSpans;
use crate::values::{self, VsockRelay};

use fields::Fields;
use table::{Section, Shape};
use wrong::Wrong;

pub(crate) use schema::schema;
pub(crate) use table::{Key, SECTIONS};
pub(crate) use wrong::failure;

/// Bytes of a file at most: a machine's description is some hundred.
const LONGEST: u64 = 1 << 20;

/// A file that was read, with what is wrong with it by itself.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// What it says, as far as it could be understood.
    pub(crate) settings: Settings,
    /// Its mistakes; `None` when it has none.
    pub(crate) mistakes: Option<Failure>,
    /// Parts of it are no TOML, so that nobody knows what else it was to say.
    pub(crate) is_broken: bool,
}

/// Reads a file whose mistakes are for its user to mend before anything else.
pub(crate) fn read_whole(path: &Path) -> Result<Settings, Failure> {
    let ConfigFile { settings, mistakes, .. } = read(path)?;
    mistakes.map_or(Ok(settings), Err)
}

/// Reads a file.
///
/// # Errors
///
/// When it is no text that can be read.
pub(crate) fn read(path: &Path) -> Result<ConfigFile, Failure> {
    let cannot = |why: String| {
        Failure::new(CONFIG, format!("cannot read {}: {why}", path.display()))
            .hint("name a file that is there and holds TOML; `capsa help config` tells more")
    };
    let bytes =
        crate::files::read_at_most(path, LONGEST).map_err(|error| cannot(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        cannot(format!("line {line} is not UTF-8"))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut settings, wrongs, is_broken) = understand(&text, folder);
    let mistakes = (!wrongs.is_empty()).then(|| failure(path, &text, wrongs));
    settings.spans.are_in(path, text);
    Ok(ConfigFile { settings, mistakes, is_broken })
}

/// Reads a file's text. Never panics, whatever it is.
pub(crate) fn parse(text: &str, folder: &Path) -> Result<Settings, Vec<Wrong>> {
    let (settings, wrongs, _) = understand(text, folder);
    if wrongs.is_empty() { Ok(settings) } else { Err(wrongs) }
}

/// What a text says, what is wrong with it, and whether parts of it are no TOML.
fn understand(text: &str, folder: &Path) -> (Settings, Vec<Wrong>, bool) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut wrongs = Vec::new();
    let settings = Reader {
        document: document.get_ref(),
        folder,
        wrongs: &mut wrongs,
        spans: SourceSpans::default(),
    }
    .settings();
    // A line that is no TOML has one mistake, the first; what it was to say is not known.
    let mut broken = BTreeSet::new();
    for error in &errors {
        let at = error.span().unwrap_or(text.len()..text.len());
        if broken.insert(line_of(text, at.start)) {
            wrongs.retain(|wrong| line_of(text, wrong.at.start) != line_of(text, at.start));
            wrongs.push(syntax(text, at, error.message()));
        }
    }
    wrongs.retain(|wrong| broken.is_empty() || !wrong.is_absence);
    (settings, wrongs, !broken.is_empty())
}

/// A place where the text is not TOML.
fn syntax(text: &str, at: Range<usize>, why: &str) -> Wrong {
    let line = text.lines().nth(line_of(text, at.start)).unwrap_or_default();
    let hint = match line.split_once('=') {
        _ if why.contains("duplicate key") => "leave one of them away".to_owned(),
        _ if why.contains("recurs") => {
            "nothing here goes deeper than a list of texts: write it flat".into()
        }
        Some((_, value)) if value.trim().is_empty() => "write a value behind the =".into(),
        Some((key, value)) if !value.contains(['"', '=']) => {
            let (key, value) = (short(key.trim()), short(value.trim()));
            format!("put texts into quotes: {key} = \"{value}\"")
        }
        Some(_) => "a text begins and ends with \", on one line".into(),
        None => "a line is [section], or key = value, or # a remark".into(),
    };
    Wrong::new(at, why.lines().collect::<Vec<_>>().join("; "), hint)
}

/// As much of a text as a hint has room for.
fn short(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// One file, on its way to settings.
struct Reader<'f, 'text> {
    document: &'f DeTable<'text>,
    folder: &'f Path,
    wrongs: &'f mut Vec<Wrong>,
    spans: SourceSpans,
}

impl Reader<'_, '_> {
    fn settings(mut self) -> Settings {
        for (name, value) in self.document {
            if SECTIONS.iter().all(|section| section.name != name.get_ref()) {
                self.wrongs.push(fields::unknown_section(
                    name.get_ref(),
                    name.span(),
                    value.get_ref(),
                ));
            }
        }
        let mut settings = Settings::default();
        self.each("guest", |_, fields, _| {
            fields.text("os", values::guest_os);
            fields.text("boot", values::boot);
            settings.on_reboot = fields.text("on-reboot", values::on_reboot);
            settings.name = fields.text("name", values::name);
        });
        self.each("boot", |here, fields, _| {
            settings.kernel = fields.path("kernel").map(here);
            settings.initrd = fields.path("initrd").map(here);
        });
        for section in ["disk", "disks"] {
            self.each(section, |here, fields, origin| {
                settings.disks.extend(disk(here, fields).map(|disk| (origin, disk)));
            });
        }
        self.each("resources", |_, fields, _| {
            settings.cpus = fields.count("cpus");
            settings.memory_mb = fields.text("memory", values::memory_mb);
            settings.timeout = fields.text("timeout", values::duration);
            settings.grace = fields.text("grace", values::duration);
        });
        self.each("network", |_, fields, _| {
            settings.network = fields.text("mode", values::network);
        });
        self.each("console", |here, fields, _| {
            settings.console = fields.text("mode", values::console);
            settings.log = fields.path("log").map(here);
            settings.record = fields.path("record").map(here);
        });
        self.each("shares", |here, fields, origin| {
            settings.shares.extend(share(here, fields).map(|share| (origin, share)));
        });
        self.each("vsock", |here, fields, _| {
            settings.vsock.extend(vsock(here, fields));
        });
        self.each("cmdline", |_, fields, _| {
            let any = |text: &str| Ok(text.to_owned());
            settings.cmdline = fields.texts("extra");
            settings.cmdline_override = fields.text("override", any);
            if settings.cmdline_override.is_some() && !settings.cmdline.is_empty() {
                let why = "extra adds to a command line that override replaces";
                fields.object("extra", why, "put it into override, or leave override away");
            }
        });
        self.each("backend", |_, fields, _| {
            settings.backend = fields.text("name", |text| Ok(text.to_owned()));
            settings.accelerator = fields.text("accel", values::accelerator);
        });
        self.each("login", |here, fields, _| {
            settings.user = fields.text("user", values::user);
            settings.password_file = fields.path("password-file").map(here);
        });
        settings.spans = self.spans;
        settings
    }

    /// Calls `read` for each table of a section, with what makes a path of the file's one from here,
    /// and the user's name of that table.
    fn each(
        &mut self,
        name: &'static str,
        mut read: impl FnMut(&dyn Fn(PathBuf) -> PathBuf, &mut Fields<'_, '_>, Origin),
    ) {
        let section = SECTIONS.iter().find(|section| section.name == name).expect("in the table");
        let Some((key, value)) = self.document.get_key_value(name) else { return };
        let folder = self.folder;
        let here = |path: PathBuf| folder.join(path);
        for Table { head, origin, at, value } in tables(section, key.span(), value, self.wrongs) {
            self.spans.note(&origin, at.clone(), value);
            let mut fields = Fields::new(section, head, Some(value), at, self.wrongs);
            read(&here, &mut fields, Some(origin));
            fields.require();
        }
    }
}

/// One table of a section.
struct Table<'f, 'text> {
    head: String,
    origin: String,
    at: Range<usize>,
    value: &'f Spanned<DeValue<'text>>,
}

/// The tables of a section, whatever its shape.
fn tables<'f, 'text>(
    section: &Section,
    key: Range<usize>,
    value: &'f Spanned<DeValue<'text>>,
    wrongs: &mut Vec<Wrong>,
) -> Vec<Table<'f, 'text>> {
    let name = section.name;
    let mut not_a = |what: &str| {
        let is = fields::kind_of(value.get_ref());
        let why = format!("{name} is {is}, not {what}");
        wrongs.push(Wrong::new(key.clone(), why, format!("write {}", section.head())));
        Vec::new()
    };
    match section.shape {
        Shape::One => {
            vec![Table { head: section.head(), origin: name.into(), at: key, value }]
        }
        Shape::Many => match value.get_ref().as_array() {
            None => not_a("a list of tables"),
            Some(list) => {
                let table = |(n, value): (usize, &'f Spanned<DeValue<'text>>)| Table {
                    head: section.head(),
                    origin: format!("{name}[{n}]"),
                    at: value.span(),
                    value,
                };
                list.iter().enumerate().map(table).collect()
            }
        },
        Shape::Named => match value.get_ref().as_table() {
            None => not_a("a table of tables"),
            Some(all) => {
                let table = |(key, value): (&Spanned<_>, &'f Spanned<DeValue<'text>>)| {
                    let key: &Spanned<std::borrow::Cow<'_, str>> = key;
                    let origin = format!("{name}.{}", key.get_ref());
                    Table { head: format!("[{origin}]"), origin, at: key.span(), value }
                };
                all.iter().map(table).collect()
            }
        },
    }
}

fn disk(here: &dyn Fn(PathBuf) -> PathBuf, fields: &mut Fields<'_, '_>) -> Option<DiskImage> {
    let path = fields.path("path");
    let format = fields.text("format", values::image_format);
    let (read_only, ephemeral) = (fields.switch("read-only"), fields.switch("ephemeral"));
    let path = here(path?);
    let image = match format {
        Some(format) => DiskImage::with_format(path, format),
        None => DiskImage::new(path),
    };
    Some(DiskImage { read_only, ephemeral, ..image })
}

fn share(here: &dyn Fn(PathBuf) -> PathBuf, fields: &mut Fields<'_, '_>) -> Option<SharedDir> {
    let host = fields.path("host");
    let guest = fields.text("guest", |text| Ok(text.to_owned()));
    let mode = fields.text("mode", values::mount_mode);
    let mechanism = fields.text("mechanism", values::mechanism);
    Some(SharedDir {
        mechanism: mechanism.unwrap_or_default(),
        ..SharedDir::new(here(host?), guest?, mode.unwrap_or_default())
    })
}

fn vsock(here: &dyn Fn(PathBuf) -> PathBuf, fields: &mut Fields<'_, '_>) -> Option<VsockRelay> {
    let port = fields.count("port");
    let (listen, connect) = (fields.path("listen"), fields.path("connect"));
    let (direction, socket) = match (listen, connect) {
        (Some(socket), None) => (VsockDirection::ToGuest, socket),
        (None, Some(socket)) => (VsockDirection::ToHost, socket),
        (Some(_), Some(_)) => {
            fields.object("connect", "both listen and connect are given", "give one of them");
            return None;
        }
        (None, None) => {
            if !fields.has("listen") && !fields.has("connect") {
                let hint = "add listen = \"./agent.sock\", or connect = \"./api.sock\"";
                fields.object("port", "neither listen nor connect is given", hint);
            }
            return None;
        }
    };
    Some(VsockRelay { direction, port: port?, socket: here(socket) })
}
