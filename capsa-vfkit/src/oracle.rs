//! Every line of `oracle.jsonl`, held against what this backend does.
//!
//! The file has argument lists with what the parser of vfkit v0.6.4 made of them: its options, and
//! the machine that they mean (what `GET /vm/inspect` would show). For each line, one of three holds:
//!
//! - vfkit refuses it. Then our own reading of the grammar refuses it too, and since every plan passes
//!   that reading (`vfkit_reads_back_what_was_meant`), no plan is such a line.
//! - vfkit accepts it, and there is a specification whose plan means the same machine, in whatever
//!   words.
//! - vfkit accepts it, and we do not produce it. [`NOT_PRODUCED`] has each of these, with the reason.
//!
//! And whatever our reading accepts, vfkit accepts and understands alike.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::{Value, json};

use capsa_proto::spec::{
    ConsoleMode, MountMode, NetworkMode, Share, ShareMechanism, VirtioFsConfig, VmSpec,
    VsockDirection, VsockPort,
};

use crate::grammar::{self, ParsedArgs};
use crate::tests::{args, disk, path, spec, try_plan_in};

/// What vfkit accepts and we do not produce: why, and on which lines of the file.
const NOT_PRODUCED: &[(&str, &[usize])] = &[
    ("Capsa boots Linux kernels directly", &[2, 3, 4, 5, 12]),
    ("a console of ours takes input and says its path at once", &[56, 58, 59]),
    ("a machine without a CPU is refused", &[18]),
    ("a network of one's own needs a program beside it", &[40, 48, 50, 51]),
    ("arguments without a meaning are not given", &[79]),
    ("disks are virtio-blk", &[22, 26]),
    ("files for the guest's own provisioning are the user's to build in", &[64]),
    ("nested virtualisation is not offered", &[68, 78]),
    ("Rosetta is not offered", &[23, 25]),
    ("the clock is the guest's own business", &[76]),
    ("the log level stays as it is", &[66]),
    ("the MAC address is made from the disks", &[43, 44]),
    ("there are no screens", &[35, 37]),
    ("the number that stands for any vsock port is none", &[61]),
    ("what a URL would change is refused in the path of the control socket", &[73]),
];

/// How many lines there are of each kind: refused by vfkit, produced, not produced.
const COUNTS: [usize; 3] = [36, 16, 29];

/// A machine as the file has it, as far as Capsa has words for it: the specification and the run
/// directory. Else the reason why it has none.
fn wanted(result: &Value) -> Result<(VmSpec, String), &'static str> {
    let options = &result["options"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for (is_set, why) in [
        (!result["positional"].is_null(), "arguments without a meaning are not given"),
        (options["logLevel"] != "", "the log level stays as it is"),
        (options["nested"] != false, "nested virtualisation is not offered"),
        (options["timesync"] != "", "the clock is the guest's own business"),
        (
            options["ignition"] != "" || !options["cloudInit"].is_null(),
            "files for the guest's own provisioning are the user's to build in",
        ),
    ] {
        if is_set {
            return Err(why);
        }
    }

    let machine = &result["vm"];
    let boot = &machine["bootloader"];
    if boot["kind"] != "linuxBootloader" {
        return Err("Capsa boots Linux kernels directly");
    }
    // The file names files beside it; ours are absolute.
    let absolute = |value: &Value| path(&format!("/{}", text(value).trim_start_matches('/')));
    let mut spec = VmSpec {
        kernel: absolute(&boot["vmlinuzPath"]),
        initrd: Some(absolute(&boot["initrdPath"])),
        ..spec()
    };
    spec.cmdline.override_with(text(&boot["kernelCmdLine"]));
    spec.resources.cpus = machine["vcpus"].as_u64().unwrap().try_into().unwrap();
    spec.resources.memory_mb = (machine["memoryBytes"].as_u64().unwrap() >> 20).try_into().unwrap();
    for device in machine["devices"].as_array().into_iter().flatten() {
        match device["kind"].as_str().unwrap() {
            "virtiorng" => {} // always there
            "virtioblk" => {
                let mut disk = disk(absolute(&device["imagePath"]).as_str());
                disk.read_only = device["readOnly"] == true;
                spec.disks.push(disk);
            }
            "virtiofs" => spec.shares.push(Share {
                host: absolute(&device["sharedDir"]),
                guest: "/share".into(),
                mode: MountMode::ReadWrite,
                mechanism: ShareMechanism::VirtioFs(VirtioFsConfig {
                    tag: Some(text(&device["mountTag"])),
                    cache: None,
                }),
            }),
            "virtionet" if !device["macAddress"].is_null() => {
                return Err("the MAC address is made from the disks");
            }
            "virtionet" if device["nat"] == true => spec.network = NetworkMode::Nat,
            "virtionet" => return Err("a network of one's own needs a program beside it"),
            "virtioserial" if device["usesStdio"] == true => spec.console = ConsoleMode::Enabled,
            "virtioserial" => {
                return Err("a console of ours takes input and says its path at once");
            }
            "nvme" | "usbmassstorage" => return Err("disks are virtio-blk"),
            "rosetta" => return Err("Rosetta is not offered"),
            "virtiosock" => {
                spec.vsock = true;
                spec.vsock_ports.push(VsockPort {
                    port: device["port"].as_u64().unwrap().try_into().unwrap(),
                    direction: match device["listen"] == true {
                        true => VsockDirection::ToHost,
                        false => VsockDirection::ToGuest,
                    },
                });
            }
            "virtiogpu" => return Err("there are no screens"),
            other => panic!("what of {other}?"),
        }
    }
    // The run directory is the user's, the socket's name in it is ours.
    let run_dir = match result["rest"]["Path"].as_str() {
        Some(socket) => socket.to_owned(),
        None => "/tmp/c/1".to_owned(),
    };
    Ok((spec, run_dir))
}

/// The plan for it, read back; else why there is none.
fn produced(spec: VmSpec, run_dir: &str) -> Result<ParsedArgs, &'static str> {
    let plan = try_plan_in(run_dir, spec).map_err(|violations| {
        assert_eq!(violations.len(), 1, "{violations:?}");
        match violations[0].field.as_str() {
            "vsock_ports[0]" => "the number that stands for any vsock port is none",
            "cpus" => "a machine without a CPU is refused",
            "run_dir" => "what a URL would change is refused in the path of the control socket",
            other => panic!("{other} is refused: {violations:?}"),
        }
    })?;
    Ok(grammar::read(args(&plan), |_| Some([0; 16].to_vec())).expect("a plan is in the grammar"))
}

/// That a plan, read back, is the machine that the file has.
fn assert_same(line: &ParsedArgs, result: &Value, argv: &[String]) {
    let machine = &result["vm"];
    let is_path = |ours: &Option<String>, theirs: &Value| {
        let theirs = theirs.as_str().unwrap().trim_start_matches('/');
        ours.as_deref().unwrap().trim_start_matches('/') == theirs
    };
    let boot = &machine["bootloader"];
    assert!(is_path(&line.kernel, &boot["vmlinuzPath"]), "{argv:?}: {line:?}");
    assert!(is_path(&line.initrd, &boot["initrdPath"]), "{argv:?}: {line:?}");
    assert_eq!(json!(line.cmdline), boot["kernelCmdLine"], "{argv:?}");
    assert_eq!(json!(line.vcpus), machine["vcpus"], "{argv:?}");
    assert_eq!(json!(line.memory_mb.unwrap() << 20), machine["memoryBytes"], "{argv:?}");
    for theirs in machine["devices"].as_array().into_iter().flatten() {
        let is_it = |ours: &Value| {
            theirs.as_object().unwrap().iter().all(|(key, value)| match key.as_str() {
                // A socket's name is ours.
                "socketURL" => true,
                "imagePath" => is_path(&ours[key].as_str().map(str::to_owned), value),
                _ => ours[key] == *value,
            })
        };
        assert!(line.devices.iter().any(is_it), "{argv:?}: no {theirs} in {:?}", line.devices);
    }
    if let Some(socket) = result["rest"]["Path"].as_str() {
        assert!(line.rest.as_ref().unwrap().starts_with(socket), "{argv:?}: {line:?}");
    }
}

/// The files that the lines name.
fn head(path: &str) -> Option<Vec<u8>> {
    match path {
        "t/raw.img" => Some([0; 4].to_vec()),
        "t/q.img" => Some(b"QFI\xfb".to_vec()),
        "t/empty.img" => Some(Vec::new()),
        _ => None,
    }
}

#[test]
fn every_line_of_the_oracle_is_consistent_with_what_we_do() {
    let mut counts = [0; 3];
    let mut not_produced: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (n, case) in (1..).zip(include_str!("oracle.jsonl").lines()) {
        let case: Value = serde_json::from_str(case).unwrap();
        let argv: Vec<String> = serde_json::from_value(case["argv"].clone()).unwrap();
        let result = &case["result"];
        let accepted = result["ok"] == true;
        assert_eq!(case["exit"] == 0, accepted, "line {n}");

        let read = grammar::read(&argv, head);
        if let Ok(line) = &read {
            assert!(accepted, "line {n}, {argv:?}: vfkit refuses what was read as {line:?}");
            let (theirs, none) = (&result["vm"], json!([]));
            assert_eq!(json!(line.vcpus.unwrap_or(1)), theirs["vcpus"], "line {n}");
            let devices = theirs.get("devices").unwrap_or(&none);
            assert_eq!(json!(line.devices), *devices, "line {n}");
            assert_eq!(json!(line.rest), result["rest"]["Path"], "line {n}");
        }
        if !accepted {
            assert!(read.is_err(), "line {n}");
            counts[0] += 1;
            continue;
        }
        match wanted(result).and_then(|(spec, run_dir)| produced(spec, &run_dir)) {
            Ok(line) => {
                assert_same(&line, result, &argv);
                counts[1] += 1;
            }
            Err(why) => {
                not_produced.entry(why).or_default().push(n);
                counts[2] += 1;
            }
        }
    }
    let listed: BTreeMap<&str, Vec<usize>> =
        NOT_PRODUCED.iter().map(|(why, lines)| (*why, lines.to_vec())).collect();
    assert_eq!(not_produced, listed, "accepted by vfkit and not produced");
    assert_eq!((counts, counts.iter().sum::<usize>()), (COUNTS, 81));
}
