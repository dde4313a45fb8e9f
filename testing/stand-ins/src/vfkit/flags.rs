//! The command line of vfkit v0.6.4, as cobra and pflag parse it.
//!
//! ```text
//! word  = "--" name [ "=" value ] | "-" letters [ [ "=" ] value ] | "--" | position
//! ```
//!
//! A flag with a value takes the next word, even one that begins with `-`. Positional arguments are
//! accepted and ignored; all words after `--` are positional.

use serde::Serialize;

/// The values of the flags. [`Config`](super::config::Config) interprets them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VfkitOptions {
    pub(super) cpus: u64,
    #[serde(rename = "memoryMiB")]
    pub(super) memory_mib: u64,
    pub(super) kernel: String,
    pub(super) kernel_cmdline: String,
    pub(super) initrd: String,
    pub(super) bootloader: Option<Vec<String>>,
    pub(super) timesync: String,
    pub(super) devices: Vec<String>,
    #[serde(rename = "restfulURI")]
    pub(super) restful_uri: String,
    pub(super) log_level: String,
    pub(super) gui: bool,
    pub(super) ignition: String,
    pub(super) cloud_init: Option<Vec<String>>,
    pub(super) nested: bool,
    pub(super) pidfile: String,
    #[serde(skip)]
    pub(super) positional: Vec<String>,
}

/// The request of a command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ParsedCommand {
    /// Run a VM.
    Run(Box<VfkitOptions>),
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

impl Default for VfkitOptions {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory_mib: 512,
            kernel: String::new(),
            kernel_cmdline: String::new(),
            initrd: String::new(),
            bootloader: None,
            timesync: String::new(),
            devices: Vec::new(),
            restful_uri: super::rest_uri::NONE.to_owned(),
            log_level: String::new(),
            gui: false,
            ignition: String::new(),
            cloud_init: None,
            nested: false,
            pidfile: String::new(),
            positional: Vec::new(),
        }
    }
}

/// Every flag: name, letter, the kind of its value, and its description in the usage text.
const FLAGS: &[(&str, Option<char>, Option<&str>, &str)] = &[
    ("bootloader", Some('b'), Some("stringSlice"), "bootloader configuration"),
    ("cloud-init", None, Some("stringSlice"), "path to cloud-init configuration files"),
    ("cpus", Some('c'), Some("uint"), "number of virtual CPUs (default 1)"),
    ("device", Some('d'), Some("stringArray"), "devices"),
    ("gui", None, None, "display the virtual machine in a graphical user interface"),
    ("help", Some('h'), None, "help for vfkit"),
    ("ignition", None, Some("string"), "path to the ignition file"),
    ("initrd", Some('i'), Some("string"), "path to the virtual machine initrd"),
    ("kernel", Some('k'), Some("string"), "path to the virtual machine Linux kernel"),
    ("kernel-cmdline", Some('C'), Some("string"), "Linux kernel command line"),
    ("log-level", None, Some("string"), "set log level"),
    ("memory", Some('m'), Some("uint"), "virtual machine RAM size in mibibytes (default 512)"),
    ("nested", Some('n'), None, "enable nested virtualization"),
    ("pidfile", None, Some("string"), "path to the pid file"),
    ("restful-uri", None, Some("string"), "URI of RESTful services (default \"none://\")"),
    ("timesync", Some('t'), Some("string"), "sync guest time when host wakes up from sleep"),
    ("version", Some('v'), None, "version for vfkit"),
];

/// The usage text, which is printed after every error.
pub(super) fn usage() -> String {
    let mut text = "Usage:\n  vfkit [flags]\n\nFlags:\n".to_owned();
    for (name, letter, kind, what) in FLAGS {
        let letter = letter.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
        let flag = format!("{letter}--{name} {}", kind.unwrap_or_default());
        text += &format!("  {flag:<32}{what}\n");
    }
    text
}

/// Parses a command line.
///
/// # Errors
///
/// The error text of the real one.
pub(super) fn parse(words: &[String]) -> Result<ParsedCommand, String> {
    let mut parser = FlagParser { options: VfkitOptions::default(), given: Vec::new(), words };
    while let Some((word, rest)) = parser.words.split_first() {
        parser.words = rest;
        match word.as_bytes() {
            [b'-', b'-'] => {
                parser.options.positional.extend(rest.iter().cloned());
                break;
            }
            [b'-', b'-', ..] => parser.long(&word[2..])?,
            [b'-', _, ..] => parser.letters(&word[1..])?,
            _ => parser.options.positional.push(word.clone()),
        }
    }
    let FlagParser { options, given, .. } = parser;
    match given.iter().find(|name| ["help", "version"].contains(name)) {
        Some(&"help") => Ok(ParsedCommand::Help),
        Some(_) if given.contains(&"help") => Ok(ParsedCommand::Help),
        Some(_) => Ok(ParsedCommand::Version),
        None => groups(&given).map(|()| ParsedCommand::Run(options.into())),
    }
}

struct FlagParser<'a> {
    options: VfkitOptions,
    /// The names of the flags on the command line.
    given: Vec<&'static str>,
    words: &'a [String],
}

impl FlagParser<'_> {
    fn long(&mut self, word: &str) -> Result<(), String> {
        if word.starts_with(['-', '=']) {
            return Err(format!("bad flag syntax: --{word}"));
        }
        let (name, value) = cut(word);
        let flag = FLAGS.iter().find(|(known, ..)| *known == name);
        let (name, letter, kind, _) = flag.ok_or_else(|| format!("unknown flag: --{name}"))?;
        let value = match (value, kind) {
            (Some(value), _) => value.to_owned(),
            (None, None) => "true".to_owned(),
            (None, Some(_)) => self.next(|| format!("flag needs an argument: --{name}"))?,
        };
        self.set(name, *letter, &value)
    }

    /// Parses `-nc4`, `-nc 4` or `-nc=4`. The first letter whose flag has a value takes the rest of the
    /// word.
    fn letters(&mut self, word: &str) -> Result<(), String> {
        let mut rest = word;
        while let Some(first) = rest.chars().next() {
            let flag = FLAGS.iter().find(|(_, letter, ..)| *letter == Some(first));
            let unknown = || format!("unknown shorthand flag: '{first}' in -{rest}");
            let (name, letter, kind, _) = flag.ok_or_else(unknown)?;
            let behind = &rest[first.len_utf8()..];
            if let Some(value) = behind.strip_prefix('=') {
                return self.set(name, *letter, value);
            }
            if kind.is_some() {
                let value = match behind {
                    "" => self.next(|| format!("flag needs an argument: '{first}' in -{rest}"))?,
                    value => value.to_owned(),
                };
                return self.set(name, *letter, &value);
            }
            self.set(name, *letter, "true")?;
            rest = behind;
        }
        Ok(())
    }

    fn next(&mut self, missing: impl FnOnce() -> String) -> Result<String, String> {
        let (value, rest) = self.words.split_first().ok_or_else(missing)?;
        self.words = rest;
        Ok(value.clone())
    }

    fn set(&mut self, name: &'static str, letter: Option<char>, value: &str) -> Result<(), String> {
        let options = &mut self.options;
        let text = value.to_owned();
        let done: Result<(), String> = match name {
            "bootloader" => list(&mut options.bootloader, value),
            "cloud-init" => list(&mut options.cloud_init, value),
            "cpus" => unsigned(value).map(|n| options.cpus = n),
            "memory" => unsigned(value).map(|n| options.memory_mib = n),
            "gui" => boolean(value).map(|on| options.gui = on),
            "nested" => boolean(value).map(|on| options.nested = on),
            "help" | "version" => boolean(value).map(drop),
            _ => {
                match name {
                    "device" => options.devices.push(text),
                    "ignition" => options.ignition = text,
                    "initrd" => options.initrd = text,
                    "kernel" => options.kernel = text,
                    "kernel-cmdline" => options.kernel_cmdline = text,
                    "log-level" => options.log_level = text,
                    "pidfile" => options.pidfile = text,
                    "restful-uri" => options.restful_uri = text,
                    "timesync" => options.timesync = text,
                    _ => unreachable!("the flag {name} is in the table but has no setter"),
                }
                Ok(())
            }
        };
        done.map_err(|why| {
            let letter = letter.map(|letter| format!("-{letter}, ")).unwrap_or_default();
            format!("invalid argument {value:?} for \"{letter}--{name}\" flag: {why}")
        })?;
        self.given.push(name);
        Ok(())
    }
}

/// Checks which flags need each other, and which exclude each other.
fn groups(given: &[&str]) -> Result<(), String> {
    let is_set = |name: &str| given.contains(&name);
    let mut missing: Vec<_> =
        ["initrd", "kernel", "kernel-cmdline"].into_iter().filter(|name| !is_set(name)).collect();
    missing.sort_unstable();
    if !missing.is_empty() && missing.len() < 3 {
        return Err(format!(
            "if any flags in the group [kernel initrd kernel-cmdline] are set they must all be \
             set; missing [{}]",
            missing.join(" ")
        ));
    }
    for name in ["initrd", "kernel", "kernel-cmdline"] {
        if is_set(name) && is_set("bootloader") {
            return Err(format!(
                "if any flags in the group [{name} bootloader] are set none of the others can be; \
                 [bootloader {name}] were all set"
            ));
        }
    }
    Ok(())
}

/// Name and value of `name=value`.
pub(super) fn cut(text: &str) -> (&str, Option<&str>) {
    match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    }
}

/// Parses a list of vfkit and appends it to `to`. Commas separate the elements, except between double
/// quotes. Quotes around a whole element are removed, other quotes stay. There are no escapes.
fn list(to: &mut Option<Vec<String>>, text: &str) -> Result<(), String> {
    let mut elements = vec![String::new()];
    let mut is_quoted = false;
    for c in text.chars() {
        match c {
            ',' if !is_quoted => {
                elements.push(String::new());
                continue;
            }
            '"' => is_quoted = !is_quoted,
            _ => {}
        }
        elements.last_mut().expect("the list is not empty").push(c);
    }
    if is_quoted {
        return Err("mismatched \"".to_owned());
    }
    let elements: Vec<String> = elements.iter().map(|element| unquoted(element)).collect();
    if elements != [""] {
        to.get_or_insert_default().extend(elements);
    }
    Ok(())
}

/// Removes the double quotes at both ends, if both ends have them.
pub(super) fn unquoted(text: &str) -> String {
    match text.starts_with('"') && text.ends_with('"') {
        true => text.trim_matches('"').to_owned(),
        false => text.to_owned(),
    }
}

/// Go's `strconv.ParseUint` with base 0.
fn unsigned(text: &str) -> Result<u64, String> {
    let failed = |why: &str| format!("strconv.ParseUint: parsing {text:?}: {why}");
    let (digits, base) = match text.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (&text[2..], 16),
        Some("0b") => (&text[2..], 2),
        Some("0o") => (&text[2..], 8),
        _ if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        _ => (text, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return Err(failed("invalid syntax"));
    }
    u64::from_str_radix(digits, base).map_err(|_| failed("value out of range"))
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &[&str]) -> Result<VfkitOptions, String> {
        let words: Vec<String> = line.iter().map(ToString::to_string).collect();
        match parse(&words)? {
            ParsedCommand::Run(options) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flag_value_syntaxes_are_accepted() {
        for line in [
            &["--cpus", "4", "-n"][..],
            &["--cpus=4", "--nested"],
            &["-c4", "--nested=true"],
            &["-nc=4"],
            &["-nc", "4"],
            &["-c", "0x4", "-n", "ignored", "--", "--cpus", "5"],
        ] {
            let options = options(line).unwrap();
            assert_eq!((options.cpus, options.nested), (4, true), "{line:?}");
        }
        assert_eq!(options(&["-d", "--x", "-d=y"]).unwrap().devices, ["--x", "y"]);
        assert_eq!(parse(&["-v".into()]), Ok(ParsedCommand::Version));
        assert_eq!(parse(&["-v".into(), "--help".into()]), Ok(ParsedCommand::Help));
    }

    #[test]
    fn unknown_flag_error_is_that_of_pflag() {
        for (line, want) in [
            (&["--cpus"][..], "flag needs an argument: --cpus"),
            (&["-nc"], "flag needs an argument: 'c' in -c"),
            (&["-nx"], "unknown shorthand flag: 'x' in -x"),
            (&["---x"], "bad flag syntax: ---x"),
            (
                &["--nested=maybe"],
                "invalid argument \"maybe\" for \"-n, --nested\" flag: strconv.ParseBool: parsing \
                 \"maybe\": invalid syntax",
            ),
            (
                &["--cpus", "99999999999999999999"],
                "invalid argument \"99999999999999999999\" for \"-c, --cpus\" flag: \
                 strconv.ParseUint: parsing \"99999999999999999999\": value out of range",
            ),
        ] {
            assert_eq!(options(line), Err(want.to_owned()), "{line:?}");
        }
    }
}
