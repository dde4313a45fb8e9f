//! The nano guest: a kernel of about a kilobyte that is on the serial port milliseconds after
//! its hypervisor starts, for every test that is not about Linux.
//!
//! It is a PVH ELF (note 18 names the 32-bit entry point), so QEMU's `q35` and `microvm` and
//! cloud-hypervisor load it with `-kernel`. It needs no firmware table, no disk and no paging,
//! which is why it also runs where KVM has no hardware behind it and a Linux guest would not.
//!
//! On COM1 it prints `CMDLINE <its command line>` and `NANO READY`, each with `\r\n`, and then
//! echoes every byte, Ctrl-C among them. Five bytes are orders instead: see [`POWER_OFF`],
//! [`RESET`], [`FLOOD`], [`HANG`] and [`TRIPLE_FAULT`].
//!
//! The ACPI power button powers it off on QEMU's `q35` and `microvm`, so that a graceful stop
//! of this guest is a real one. Cloud-hypervisor puts its button at an address that only its
//! ACPI tables tell, which this guest does not read: there the button does nothing.
//!
//! Between bytes it halts. Only a 10 ms timer tick, for the button, and the serial port's
//! interrupt wake it. While the host does not read, it waits for the transmitter in a loop.
//!
//! Measured with QEMU 10.0.2, spawn to the last byte of [`READY`]: emulation (`-accel tcg`) 95 to
//! 160 ms on `q35` and 80 to 120 ms on `microvm`, nearly all of it QEMU's own start. Idle it takes
//! about 1 % of a core there. Under KVM without hardware (pvm) every instruction of the firmware
//! is emulated one by one: 3.1 to 4.4 s on either machine, then idle at no measurable cost.
//!
//! The machine code is a table, `listing`, one instruction a line with its source beside it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

/// What the guest prints when it listens, line end included.
pub const READY: &[u8] = b"NANO READY\r\n";
/// Ctrl-D: power off.
pub const POWER_OFF: u8 = 0x04;
/// Ctrl-E: execute where there is no memory. KVM gives the processor up; emulation does not.
pub const NOWHERE: u8 = 0x05;
/// Ctrl-F: print [`flood`].
pub const FLOOD: u8 = 0x06;
/// Ctrl-N: halt for ever with interrupts off, deaf to bytes and to the power button.
pub const HANG: u8 = 0x0e;
/// Ctrl-R: reset the machine.
pub const RESET: u8 = 0x12;
/// Ctrl-X: triple fault.
pub const TRIPLE_FAULT: u8 = 0x18;

/// How a nano guest is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nano {
    /// Power off when the ACPI power button is pressed. Without it the guest ignores a polite
    /// stop and has to be killed.
    pub power_button: bool,
}

impl Default for Nano {
    fn default() -> Self {
        Self { power_button: true }
    }
}

impl Nano {
    /// The guest as an ELF image.
    pub fn elf(self) -> Vec<u8> {
        link(&assemble(&listing(self)))
    }

    /// Writes the image into `dir` and returns its path.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_to(self, dir: impl AsRef<Path>) -> io::Result<PathBuf> {
        let name = if self.power_button { "nano.elf" } else { "nano-stubborn.elf" };
        let path = dir.as_ref().join(name);
        std::fs::write(&path, self.elf())?;
        Ok(path)
    }
}

/// The guest with everything on, as an ELF image.
pub fn elf() -> Vec<u8> {
    Nano::default().elf()
}

/// Writes the guest with everything on into `dir` and returns its path.
///
/// # Errors
/// When the file cannot be written.
pub fn write_to(dir: impl AsRef<Path>) -> io::Result<PathBuf> {
    Nano::default().write_to(dir)
}

/// The 64 KiB that [`FLOOD`] asks for: 1024 numbered lines of 64 bytes, so that a lost or
/// doubled byte shows where it happened.
pub fn flood() -> Vec<u8> {
    (0..FLOOD_LINES).flat_map(|line| format!("{line:04x}{FLOOD_TEXT}").into_bytes()).collect()
}

const FLOOD_LINES: u32 = 1024;
const FLOOD_LINE_BYTES: u32 = 64;
const FLOOD_TEXT: &str = " ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz01234\r\n";

/// Where the image is loaded: the first byte above the legacy megabyte.
const LOAD: u32 = 0x0010_0000;
/// The stack grows down from here, well behind the image.
const STACK_TOP: u32 = LOAD + 0x8000;

/// One line of the listing.
enum Line {
    /// A name for the address of what follows.
    Label(&'static str),
    /// Machine code or data, as it is.
    Bytes(Vec<u8>),
    /// An opcode, then the distance to a label as 32 bits.
    Relative(&'static [u8], &'static str),
    /// Bytes, then the address of a label (plus an offset) as 32 bits.
    Absolute(&'static [u8], &'static str, u32),
    /// An interrupt gate for the handler at a label.
    Gate(&'static str),
}

fn at(name: &'static str) -> Line {
    Line::Label(name)
}
fn op(code: &[u8]) -> Line {
    Line::Bytes(code.to_vec())
}
fn imm(code: &[u8], value: u32) -> Line {
    Line::Bytes([code, &value.to_le_bytes()].concat())
}
/// `mov dword [address], value`: how a memory-mapped register is written.
fn poke(address: u32, value: u32) -> Line {
    Line::Bytes([&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat())
}
/// `mov al, value; mov edx, port; out dx, al`
fn outb(port: u16, value: u8) -> Line {
    let [low, high] = port.to_le_bytes();
    Line::Bytes(vec![0xb0, value, 0xba, low, high, 0, 0, 0xee])
}
/// `cmp al, byte`, followed by a jump to the label where they are equal.
fn on(byte: u8, label: &'static str) -> [Line; 2] {
    [Line::Bytes(vec![0x3c, byte]), je(label)]
}
fn je(label: &'static str) -> Line {
    Line::Relative(&[0x0f, 0x84], label)
}
fn jne(label: &'static str) -> Line {
    Line::Relative(&[0x0f, 0x85], label)
}
fn jmp(label: &'static str) -> Line {
    Line::Relative(&[0xe9], label)
}
fn call(label: &'static str) -> Line {
    Line::Relative(&[0xe8], label)
}
/// Bytes that end in the address of a label.
fn abs(code: &'static [u8], label: &'static str) -> Line {
    Line::Absolute(code, label, 0)
}

/// The guest, top to bottom: set up, the loop, what the orders do, subroutines, data.
/// `ebp` says which power button the machine has: 0 none, 1 q35's, 2 microvm's.
#[rustfmt::skip]
fn listing(how: Nano) -> Vec<Line> {
    let mut code = vec![
        // PVH enters in 32-bit protected mode, flat, paging off, ebx = hvm_start_info. Its GDT
        // may be anywhere, and interrupts reload cs from it: bring our own.
        at("start"),
        op(&[0xfa]),                              // cli
        op(&[0xfc]),                              // cld
        imm(&[0xbc], STACK_TOP),                  // mov esp, STACK_TOP
        abs(&[0x0f, 0x01, 0x15], "gdt pointer"),  // lgdt
        abs(&[0xea], "flat"), op(&[0x08, 0x00]),  // jmp 0x08:flat
        at("flat"),
        imm(&[0xb8], 0x10),                       // mov eax, 0x10
        op(&[0x8e, 0xd8]),                        // mov ds, eax
        op(&[0x8e, 0xc0]),                        // mov es, eax
        op(&[0x8e, 0xd0]),                        // mov ss, eax
        abs(&[0x0f, 0x01, 0x1d], "idt pointer"),  // lidt

        // The legacy PIC: every line masked. A timer interrupt that it has pending would be lost
        // with LINT0 below, and QEMU 10.0.2 then delivers vector -1: a triple fault.
        outb(0x21, 0xff),
        outb(0xa1, 0xff),
        // The local APIC: on, the legacy PIC's line masked (the firmware left its timer
        // running), and a periodic tick. Its clock is 1 GHz under QEMU and under KVM.
        poke(0xfee0_00f0, 0x122),                 // enabled, spurious vector 0x22
        poke(0xfee0_0350, 0x1_0000),              // LINT0 masked
        poke(0xfee0_03e0, 0x3),                   // divide by 16
        poke(0xfee0_0320, 0x2_0020),              // periodic, vector 0x20
        poke(0xfee0_0380, 625_000),               // 10 ms
        // The I/O APIC: COM1 is pin 4, and becomes vector 0x21 of processor 0.
        poke(0xfec0_0000, 0x19), poke(0xfec0_0010, 0),
        poke(0xfec0_0000, 0x18), poke(0xfec0_0010, 0x21),
        // COM1: 8n1, FIFOs on, interrupt when a byte has arrived.
        outb(0x3fb, 0x03),
        outb(0x3fa, 0x01),
        outb(0x3fc, 0x0b),
        outb(0x3f9, 0x01),

        abs(&[0xbe], "cmdline text"),             // mov esi, "CMDLINE "
        call("print"),
        op(&[0x8b, 0x73, 0x18]),                  // mov esi, [ebx + 24]: cmdline_paddr
        op(&[0x85, 0xf6]),                        // test esi, esi
        je("no cmdline"),
        call("print"),
        at("no cmdline"),
        op(&[0x31, 0xed]),                        // xor ebp, ebp
    ];
    if how.power_button {
        code.extend([
            // q35 has its ICH9 bridge at PCI 0:1f.0. microvm has no PCI ports but QEMU's
            // fw_cfg; cloud-hypervisor has neither.
            imm(&[0xb8], 0x8000_f800),            // mov eax, 0:1f.0 register 0
            imm(&[0xba], 0xcf8), op(&[0xef]),     // out 0xcf8, eax
            imm(&[0xba], 0xcfc), op(&[0xed]),     // in eax, 0xcfc
            imm(&[0x3d], 0x2918_8086),            // cmp eax, ICH9
            je("is q35"),
            op(&[0x31, 0xc0]),                    // xor eax, eax: the signature
            imm(&[0xba], 0x510), op(&[0x66, 0xef]), // out 0x510, ax
            op(&[0x42]), op(&[0xec]),             // inc edx; in al, 0x511
            op(&[0x3c, b'Q']),                    // cmp al, 'Q'
            jne("announce"),
            imm(&[0xbd], 2),                      // mov ebp, 2
            jmp("announce"),
            at("is q35"),
            imm(&[0xbd], 1),                      // mov ebp, 1
            imm(&[0xb8], 0x0100),                 // mov eax, PWRBTN_EN
            imm(&[0xba], 0x602), op(&[0x66, 0xef]), // out PM1_EN, ax
        ]);
    }
    code.extend([
        at("announce"),
        abs(&[0xbe], "ready text"),               // mov esi, "\r\nNANO READY\r\n"
        call("print"),

        // Look at everything with interrupts off, then halt. `sti` takes effect after the
        // next instruction, so what arrives in between still ends the halt.
        at("loop"),
        op(&[0xfa]),                              // cli
        imm(&[0xba], 0x3fd), op(&[0xec]),         // in al, LSR
        op(&[0xa8, 0x01]),                        // test al, data ready
        jne("byte"),
        op(&[0x83, 0xfd, 0x01]),                  // cmp ebp, 1
        Line::Relative(&[0x0f, 0x82], "idle"),    // jb idle
        je("q35 button"),
        op(&[0xa1]), op(&0xfea0_0000u32.to_le_bytes()), // mov eax, [GED event selector]
        op(&[0xa8, 0x02]),                        // test al, power button
        jne("power off"),
        jmp("idle"),
        at("q35 button"),
        imm(&[0xba], 0x600), op(&[0x66, 0xed]),   // in ax, PM1_STS
        op(&[0xf6, 0xc4, 0x01]),                  // test ah, PWRBTN_STS >> 8
        jne("power off"),
        at("idle"),
        op(&[0xfb]),                              // sti
        op(&[0xf4]),                              // hlt
        jmp("loop"),

        at("byte"),
        imm(&[0xba], 0x3f8), op(&[0xec]),         // in al, RBR
    ]);
    code.extend(on(POWER_OFF, "say all"));
    code.extend(on(NOWHERE, "nowhere"));
    code.extend(on(FLOOD, "flood"));
    code.extend(on(HANG, "hang"));
    code.extend(on(RESET, "reset"));
    code.extend(on(TRIPLE_FAULT, "triple fault"));
    code.extend([
        call("put"),
        jmp("loop"),

        // What is in the transmit FIFO goes with the machine.
        at("say all"),
        imm(&[0xba], 0x3fd), op(&[0xec]),         // in al, LSR
        op(&[0xa8, 0x40]),                        // test al, TEMT
        je("say all"),

        // Each machine has its own switch, and ignores the other two.
        at("power off"),
        outb(0x600, 0x34),                        // cloud-hypervisor
        imm(&[0xb8], 0x2000),                     // mov eax, SLP_EN, S5
        imm(&[0xba], 0x604), op(&[0x66, 0xef]),   // q35: out PM1_CNT, ax
        op(&[0xc6, 0x05]), op(&0xfea0_0200u32.to_le_bytes()), op(&[0x34]), // microvm: mov byte
        jmp("hang"),

        at("reset"),
        outb(0x64, 0xfe),                         // the keyboard controller
        op(&[0xc6, 0x05]), op(&0xfea0_0202u32.to_le_bytes()), op(&[0x42]), // microvm: mov byte
        at("hang"),
        op(&[0xfa]),                              // cli
        op(&[0xf4]),                              // hlt
        jmp("hang"),

        at("nowhere"),
        imm(&[0xb8], 0xe000_0000),                // mov eax, a hole beneath the I/O APIC
        op(&[0xff, 0xe0]),                        // jmp eax

        at("triple fault"),
        abs(&[0x0f, 0x01, 0x1d], "no idt"),       // lidt
        op(&[0x0f, 0x0b]),                        // ud2

        // The number of the line goes into its first four bytes, then the line goes out in
        // strides of the transmit FIFO's 16 bytes.
        at("flood"),
        op(&[0x31, 0xff]),                        // xor edi, edi
        at("flood line"),
        op(&[0x89, 0xf8]),                        // mov eax, edi
        op(&[0xc1, 0xe0, 0x10]),                  // shl eax, 16
        abs(&[0xb9], "line"),                     // mov ecx, line
        at("flood digit"),
        op(&[0xc1, 0xc0, 0x04]),                  // rol eax, 4
        op(&[0x89, 0xc2]),                        // mov edx, eax
        op(&[0x83, 0xe2, 0x0f]),                  // and edx, 15
        abs(&[0x8a, 0x92], "digits"),             // mov dl, [edx + digits]
        op(&[0x88, 0x11]),                        // mov [ecx], dl
        op(&[0x41]),                              // inc ecx
        Line::Absolute(&[0x81, 0xf9], "line", 4), // cmp ecx, line + 4
        jne("flood digit"),
        abs(&[0xbe], "line"),                     // mov esi, line
        at("flood stride"),
        call("transmitter"),
        imm(&[0xba], 0x3f8),                      // mov edx, THR
        imm(&[0xb9], 16),                         // mov ecx, 16
        // Not `rep outsb`: QEMU 10.0.2, where it emulates KVM's processor, now and then goes on
        // somewhere else after one that a tick interrupts.
        at("flood byte"),
        op(&[0xac]),                              // lodsb
        op(&[0xee]),                              // out THR, al
        op(&[0x49]),                              // dec ecx
        jne("flood byte"),
        Line::Absolute(&[0x81, 0xfe], "line", FLOOD_LINE_BYTES), // cmp esi, line + 64
        jne("flood stride"),
        op(&[0x47]),                              // inc edi
        imm(&[0x81, 0xff], FLOOD_LINES),          // cmp edi, lines
        jne("flood line"),
        jmp("loop"),

        // Prints the NUL-ended text at esi.
        at("print"),
        op(&[0xac]),                              // lodsb
        op(&[0x84, 0xc0]),                        // test al, al
        je("printed"),
        call("put"),
        jmp("print"),
        at("printed"),
        op(&[0xc3]),                              // ret

        // Sends al.
        at("put"),
        op(&[0x88, 0xc1]),                        // mov cl, al
        call("transmitter"),
        op(&[0x88, 0xc8]),                        // mov al, cl
        imm(&[0xba], 0x3f8), op(&[0xee]),         // out THR, al
        op(&[0xc3]),                              // ret

        // Waits until the transmit FIFO is empty. Uses eax and edx.
        at("transmitter"),
        imm(&[0xba], 0x3fd), op(&[0xec]),         // in al, LSR
        op(&[0xa8, 0x20]),                        // test al, THRE
        je("transmitter"),
        op(&[0xc3]),                              // ret

        // An interrupt only ends the halt; the loop looks for itself what happened. They are on
        // nowhere else, so there is nothing to return to: no `iret`, which KVM without
        // hardware behind it (pvm) cannot do in protected mode.
        at("interrupt"),
        poke(0xfee0_00b0, 0),                     // end of interrupt
        imm(&[0xbc], STACK_TOP),                  // mov esp, STACK_TOP
        jmp("loop"),

        at("gdt"),
        op(&[0; 8]),
        op(&0x00cf_9b00_0000_ffffu64.to_le_bytes()), // 0x08: code, 4 GiB, 32 bits
        op(&0x00cf_9300_0000_ffffu64.to_le_bytes()), // 0x10: data, 4 GiB
        at("gdt pointer"),
        abs(&[23, 0], "gdt"),
        at("idt"),
        op(&[0; 0x20 * 8]),                       // exceptions: none taken, so none handled
        Line::Gate("interrupt"),                  // 0x20: tick
        Line::Gate("interrupt"),                  // 0x21: COM1
        Line::Gate("interrupt"),                  // 0x22: spurious
        at("idt pointer"),
        abs(&[(0x23 * 8 - 1) as u8, ((0x23 * 8 - 1) >> 8) as u8], "idt"),
        at("no idt"),
        op(&[0; 6]),
        at("cmdline text"), op(b"CMDLINE \0"),
        at("ready text"), op(b"\r\nNANO READY\r\n\0"),
        at("digits"), op(b"0123456789abcdef"),
        at("line"), op(b"0000"), op(FLOOD_TEXT.as_bytes()),
    ]);
    code
}

/// Turns the listing into bytes to be placed at [`LOAD`]: one pass lays out, one fills in.
fn assemble(listing: &[Line]) -> Vec<u8> {
    let mut labels = HashMap::new();
    let mut here = LOAD;
    for line in listing {
        here += match line {
            Line::Label(name) => {
                assert!(labels.insert(*name, here).is_none(), "label {name:?} is there twice");
                0
            }
            Line::Bytes(bytes) => bytes.len() as u32,
            Line::Relative(code, _) | Line::Absolute(code, ..) => code.len() as u32 + 4,
            Line::Gate(_) => 8,
        };
    }
    let address = |name: &str| *labels.get(name).unwrap_or_else(|| panic!("no label {name:?}"));
    let mut image = Vec::new();
    for line in listing {
        match line {
            Line::Label(_) => {}
            Line::Bytes(bytes) => image.extend_from_slice(bytes),
            Line::Relative(code, to) => {
                image.extend_from_slice(code);
                let next = LOAD + image.len() as u32 + 4;
                image.extend_from_slice(&address(to).wrapping_sub(next).to_le_bytes());
            }
            Line::Absolute(code, to, offset) => {
                image.extend_from_slice(code);
                image.extend_from_slice(&(address(to) + offset).to_le_bytes());
            }
            Line::Gate(handler) => {
                let [a, b, c, d] = address(handler).to_le_bytes();
                image.extend_from_slice(&[a, b, 0x08, 0x00, 0x00, 0x8e, c, d]);
            }
        }
    }
    image
}

/// Wraps the image into an ELF file. It is a 64-bit one with 32-bit code inside, because that
/// is the only class cloud-hypervisor's loader takes; QEMU takes both.
fn link(image: &[u8]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    const NOTE: u64 = HEADER + 2 * PROGRAM_HEADER;
    const NOTE_SIZE: u64 = 24;
    const IMAGE: u64 = NOTE + NOTE_SIZE;
    let load = u64::from(LOAD);
    let size = image.len() as u64;

    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64 bits, little endian
    elf.extend_from_slice(&2u16.to_le_bytes()); // an executable
    elf.extend_from_slice(&62u16.to_le_bytes()); // for x86-64
    elf.extend_from_slice(&1u32.to_le_bytes());
    for field in [load, HEADER, 0] {
        elf.extend_from_slice(&field.to_le_bytes()); // entry, program headers, no sections
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    for field in [HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    // Type, flags; offset, virtual and physical address, size in the file and in memory, align.
    for (kind, flags, fields) in [
        (1u32, 7u32, [IMAGE, load, load, size, u64::from(STACK_TOP - LOAD), 1]),
        (4, 4, [NOTE, 0, 0, NOTE_SIZE, NOTE_SIZE, 4]),
    ] {
        elf.extend_from_slice(&kind.to_le_bytes());
        elf.extend_from_slice(&flags.to_le_bytes());
        for field in fields {
            elf.extend_from_slice(&field.to_le_bytes());
        }
    }
    // XEN_ELFNOTE_PHYS32_ENTRY. QEMU reads eight bytes of the address, the others four.
    for field in [4u32, 8, 18] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    elf.extend_from_slice(b"Xen\0");
    elf.extend_from_slice(&load.to_le_bytes());
    elf.extend_from_slice(image);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_small_and_starts_where_the_note_says() {
        let elf = elf();
        assert!(elf.len() < 1536, "{} bytes", elf.len());
        assert_eq!(elf[200], 0xfa, "the image begins behind headers and note");
        assert_eq!(elf[192..196], LOAD.to_le_bytes());
    }

    #[test]
    fn flood_is_64_kib_of_distinct_lines() {
        let flood = flood();
        assert_eq!(flood.len(), 64 * 1024);
        let lines: std::collections::HashSet<_> = flood.chunks(64).collect();
        assert_eq!(lines.len(), 1024);
    }

    #[test]
    fn stubborn_guest_never_touches_the_button() {
        let enable = [0xba, 0x02, 0x06, 0, 0]; // mov edx, PM1_EN
        let touches = |elf: Vec<u8>| elf.windows(enable.len()).any(|w| w == enable);
        assert!(touches(elf()));
        assert!(!touches(Nano { power_button: false }.elf()));
    }
}
