//! How disks are attached, and which are rejected.

use super::*;

#[test]
fn plan_disks_have_format_and_quoted_paths() {
    let plan = plan(VmSpec {
        disks: vec![
            disk("/d.raw", ImageFormat::Raw),
            Disk { ephemeral: true, ..disk("/d,1.qcow2", ImageFormat::Qcow2) },
            Disk { read_only: true, ..disk("/dev/vg", ImageFormat::Raw) },
            Disk { read_only: true, ephemeral: true, ..disk("/e.raw", ImageFormat::Raw) },
        ],
        ..spec()
    });
    let args = args(&plan);
    assert!(
        args.contains(
            r#""driver":"raw","file":{"discard":"unmap","driver":"file","filename":"/d.raw"},"node-name":"disk0""#
        ),
        "{args}"
    );
    assert!(
        args.contains(
            r#"snapshot=on,file=json:{"backing":null,,"driver":"qcow2",,"file":{"driver":"file",,"filename":"/d,,1.qcow2"}}"#
        ),
        "{args}"
    );
    assert!(args.contains(r#""driver":"host_device","filename":"/dev/vg""#), "{args}");
    assert_eq!(args.matches(r#""read-only":true"#).count(), 2, "{args}");
    assert!(plan.cmdline.contains("root=/dev/vda"));
}

#[test]
fn plan_names_each_backing_file() {
    let top = Disk {
        backing: vec![path("/middle.qcow2"), path("/d.raw")],
        ..disk("/top.qcow2", ImageFormat::Qcow2)
    };
    let below = |comma: &str| {
        r#""backing":{"backing":{"driver":"raw","file":{"driver":"file","filename":"/d.raw"},"read-only":true},"driver":"qcow2","file":{"driver":"file","filename":"/middle.qcow2"},"read-only":true}"#
            .replace(',', comma)
    };
    for (ephemeral, comma) in [(false, ","), (true, ",,")] {
        let disks = vec![Disk { ephemeral, ..top.clone() }];
        let plan = plan(VmSpec { disks, ..spec() });
        let args = args(&plan);
        assert!(args.contains(&below(comma)), "{args}");
    }
}

#[test]
fn validate_backing_file_not_allowed_rejected() {
    let top = |backing: &[&str]| Disk {
        backing: backing.iter().map(|allowed| path(allowed)).collect(),
        ..disk("/top.qcow2", ImageFormat::Qcow2)
    };
    let spec = |disk| VmSpec { disks: vec![disk], ..spec() };
    for allowed in [&[][..], &["/middle.qcow2"], &["/d.raw"], &["/middle.qcow2", "/work"]] {
        for ephemeral in [false, true] {
            let disk = Disk { ephemeral, ..top(allowed) };
            assert_eq!(rejected(spec(disk)), [("disks[0].path".into(), Kind::NotAllowed)]);
        }
    }
    let error = try_plan(spec(top(&["/middle.qcow2"])), &host(), &found()).unwrap_err();
    let chain = "/d.raw is not allowed: /top.qcow2 -> /middle.qcow2 -> /d.raw";
    assert!(error[0].reason.contains(chain), "{}", error[0]);
    let missing = top(&["/middle.qcow2", "/d.raw", "/none"]);
    assert_eq!(rejected(spec(missing)), [("disks[0].backing[2]".into(), Kind::Missing)]);
}

#[test]
fn plan_disk_error_policy_is_an_option() {
    let of = |on_disk_error| {
        let disks = vec![
            disk("/d.raw", ImageFormat::Raw),
            Disk { ephemeral: true, ..disk("/d,1.qcow2", ImageFormat::Qcow2) },
        ];
        args(&plan(VmSpec { disks, on_disk_error, ..spec() }))
    };
    for (policy, action) in [
        (DiskErrorPolicy::default(), "werror=report,rerror=report"),
        (DiskErrorPolicy::Pause, "werror=stop,rerror=stop"),
    ] {
        let args = of(policy);
        for disk in ["disk0", "disk1"] {
            let device = format!("virtio-blk-pci,drive={disk},{action}");
            assert!(args.contains(&device), "{args}");
        }
    }
}
