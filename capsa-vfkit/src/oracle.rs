//! Compares this backend with recorded results of vfkit's parser, in `oracle.jsonl`.
//!
//! Each line of the file has an argument list and the result of vfkit v0.6.4: its options and the VM
//! that they describe (the output of `GET /vm/inspect`). Each line is in one of three groups:
//!
//! - vfkit rejects it. Then [`grammar`] rejects it too. Each plan passes [`grammar`]
//!   (`plan_parsed_equals_spec`), so no plan has such arguments.
//! - vfkit accepts it, and there is a spec whose plan describes the same VM.
//! - vfkit accepts it, and no plan produces it. [`NOT_PRODUCED`] lists these with the reason.
//!
//! If [`grammar`] accepts a line, vfkit accepts it too, with the same result.

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

/// What vfkit accepts and no plan produces: the reason, and the lines of the file.
const NOT_PRODUCED: &[(&str, &[usize])] = &[
    ("a console must accept input and have a known path", &[56, 58, 59]),
    ("a socket path that a URL parser changes is rejected", &[73]),
    ("a VM without a CPU is rejected", &[18]),
    ("Capsa boots Linux kernels directly", &[2, 3, 4, 5, 12]),
    ("clock synchronisation is not supported", &[76]),
    ("disks are virtio-blk", &[22, 26]),
    ("displays are not supported", &[35, 37]),
    ("guest provisioning files are not supported", &[64]),
    ("nested virtualisation is not supported", &[68, 78]),
    ("positional arguments are not used", &[79]),
    ("Rosetta is not supported", &[23, 25]),
    ("the log level is not set", &[66]),
    ("the NAT of macOS is not used", &[41, 43, 44]),
    ("the network card inherits its socket", &[48, 50, 51]),
    ("the wildcard vsock port is rejected", &[61]),
];

/// The number of lines in each group: rejected by vfkit, produced, not produced.
const COUNTS: [usize; 3] = [36, 16, 29];

/// The spec and the run directory of a VM in the file, or the reason why Capsa cannot express it.
fn wanted(result: &Value) -> Result<(VmSpec, String), &'static str> {
    let options = &result["options"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for (is_set, reason) in [
        (!result["positional"].is_null(), "positional arguments are not used"),
        (options["logLevel"] != "", "the log level is not set"),
        (options["nested"] != false, "nested virtualisation is not supported"),
        (options["timesync"] != "", "clock synchronisation is not supported"),
        (
            options["ignition"] != "" || !options["cloudInit"].is_null(),
            "guest provisioning files are not supported",
        ),
    ] {
        if is_set {
            return Err(reason);
        }
    }

    let vm = &result["vm"];
    let boot = &vm["bootloader"];
    if boot["kind"] != "linuxBootloader" {
        return Err("Capsa boots Linux kernels directly");
    }
    // The file has relative paths; a spec has absolute ones.
    let absolute = |value: &Value| path(&format!("/{}", text(value).trim_start_matches('/')));
    let mut spec = VmSpec {
        kernel: absolute(&boot["vmlinuzPath"]),
        initrd: Some(absolute(&boot["initrdPath"])),
        ..spec()
    };
    spec.cmdline.override_with(text(&boot["kernelCmdLine"]));
    spec.resources.cpus = vm["vcpus"].as_u64().unwrap().try_into().unwrap();
    spec.resources.memory_mb = (vm["memoryBytes"].as_u64().unwrap() >> 20).try_into().unwrap();
    for device in vm["devices"].as_array().into_iter().flatten() {
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
            "virtionet" if device["nat"] == true => {
                return Err("the NAT of macOS is not used");
            }
            "virtionet" if device["unixSocketPath"].is_null() => spec.network = NetworkMode::Nat,
            "virtionet" => return Err("the network card inherits its socket"),
            "virtioserial" if device["usesStdio"] == true => spec.console = ConsoleMode::Enabled,
            "virtioserial" => {
                return Err("a console must accept input and have a known path");
            }
            "nvme" | "usbmassstorage" => return Err("disks are virtio-blk"),
            "rosetta" => return Err("Rosetta is not supported"),
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
            "virtiogpu" => return Err("displays are not supported"),
            other => panic!("unexpected device {other}"),
        }
    }
    // The user chooses the run directory; the backend chooses the socket's name in it.
    let run_dir = match result["rest"]["Path"].as_str() {
        Some(socket) => socket.to_owned(),
        None => "/tmp/c/1".to_owned(),
    };
    Ok((spec, run_dir))
}

/// The parsed arguments of the spec's plan, or the reason why the spec is rejected.
fn produced(spec: VmSpec, run_dir: &str) -> Result<ParsedArgs, &'static str> {
    let plan = try_plan_in(run_dir, spec).map_err(|violations| {
        assert_eq!(violations.len(), 1, "{violations:?}");
        match violations[0].field.as_str() {
            "vsock_ports[0]" => "the wildcard vsock port is rejected",
            "cpus" => "a VM without a CPU is rejected",
            "run_dir" => "a socket path that a URL parser changes is rejected",
            other => panic!("{other} is rejected: {violations:?}"),
        }
    })?;
    Ok(grammar::read(args(&plan), |_| Some([0; 16].to_vec())).expect("a plan is in the grammar"))
}

/// Asserts that a plan's parsed arguments describe the VM in the file.
fn assert_same(line: &ParsedArgs, result: &Value, argv: &[String]) {
    let vm = &result["vm"];
    let is_path = |ours: &Option<String>, theirs: &Value| {
        let theirs = theirs.as_str().unwrap().trim_start_matches('/');
        ours.as_deref().unwrap().trim_start_matches('/') == theirs
    };
    let boot = &vm["bootloader"];
    assert!(is_path(&line.kernel, &boot["vmlinuzPath"]), "{argv:?}: {line:?}");
    assert!(is_path(&line.initrd, &boot["initrdPath"]), "{argv:?}: {line:?}");
    assert_eq!(json!(line.cmdline), boot["kernelCmdLine"], "{argv:?}");
    assert_eq!(json!(line.vcpus), vm["vcpus"], "{argv:?}");
    assert_eq!(json!(line.memory_mb.unwrap() << 20), vm["memoryBytes"], "{argv:?}");
    for theirs in vm["devices"].as_array().into_iter().flatten() {
        let is_it = |ours: &Value| {
            theirs.as_object().unwrap().iter().all(|(key, value)| match key.as_str() {
                // The backend chooses the socket's name.
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

/// The first bytes of the files that the lines name.
fn head(path: &str) -> Option<Vec<u8>> {
    match path {
        "t/raw.img" => Some([0; 4].to_vec()),
        "t/q.img" => Some(b"QFI\xfb".to_vec()),
        "t/empty.img" => Some(Vec::new()),
        _ => None,
    }
}

#[test]
fn oracle_lines_agree_with_plans_and_grammar() {
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
            assert!(accepted, "line {n}, {argv:?}: vfkit rejects what grammar accepts as {line:?}");
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
            Err(reason) => {
                not_produced.entry(reason).or_default().push(n);
                counts[2] += 1;
            }
        }
    }
    let listed: BTreeMap<&str, Vec<usize>> =
        NOT_PRODUCED.iter().map(|(reason, lines)| (*reason, lines.to_vec())).collect();
    assert_eq!(not_produced, listed, "accepted by vfkit and not produced");
    assert_eq!((counts, counts.iter().sum::<usize>()), (COUNTS, 81));
}
