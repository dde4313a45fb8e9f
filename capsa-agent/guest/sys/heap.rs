//! The allocator: free lists for blocks of powers of two, and mappings of their own for large blocks.
//!
//! The program has one thread. Small blocks are never returned to the kernel; large ones always are.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::null_mut;

use super::{map_memory, remap_memory, unmap_memory};

/// Blocks of 16 bytes to 32 KiB.
const CLASSES: usize = 12;
const SMALLEST: usize = 16;
const LARGEST: usize = SMALLEST << (CLASSES - 1);
/// How much memory small blocks are cut from at once.
const CHUNK: usize = 64 * 1024;
const PAGE: usize = 4096;

#[global_allocator]
static HEAP: Heap =
    Heap(UnsafeCell::new(FreeBlocks { free: [null_mut(); CLASSES], next: null_mut(), left: 0 }));

struct Heap(UnsafeCell<FreeBlocks>);

// SAFETY: the program has one thread.
unsafe impl Sync for Heap {}

/// The first free block of each size, and the rest of the last chunk.
struct FreeBlocks {
    free: [*mut u8; CLASSES],
    next: *mut u8,
    left: usize,
}

/// The class of a block; `None` if it gets a mapping of its own.
fn class(layout: Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(SMALLEST);
    (size <= LARGEST).then(|| (size.next_power_of_two() / SMALLEST).trailing_zeros() as usize)
}

const fn pages(size: usize) -> usize {
    size.next_multiple_of(PAGE)
}

// SAFETY: each block is as large as its class and aligned to it, or a mapping, and is given out once until
// it is freed. Alignments beyond a page do not occur.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class(layout) else { return map_memory(pages(layout.size())) };
        // SAFETY: one thread, and no other reference lives.
        let blocks = unsafe { &mut *self.0.get() };
        let block = blocks.free[class];
        if !block.is_null() {
            // SAFETY: a free block begins with the address of the next one.
            blocks.free[class] = unsafe { *block.cast::<*mut u8>() };
            return block;
        }
        let size = SMALLEST << class;
        let skipped = blocks.next.align_offset(size.min(PAGE));
        if blocks.left < skipped + size {
            // Aligned to a page, and longer than the largest block.
            let chunk = map_memory(CHUNK);
            if chunk.is_null() {
                return chunk;
            }
            blocks.next = chunk.wrapping_add(size);
            blocks.left = CHUNK - size;
            return chunk;
        }
        let start = blocks.next.wrapping_add(skipped);
        blocks.next = start.wrapping_add(size);
        blocks.left -= skipped + size;
        start
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = class(layout) else {
            return unmap_memory(block, pages(layout.size()));
        };
        // SAFETY: one thread, and no other reference lives.
        let blocks = unsafe { &mut *self.0.get() };
        // SAFETY: the block is free and at least 16 bytes long.
        unsafe { *block.cast::<*mut u8>() = blocks.free[class] };
        blocks.free[class] = block;
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller passes a size that is valid for the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class(layout), class(new)) {
            (Some(old), Some(new)) if old == new => block,
            (None, None) => remap_memory(block, pages(layout.size()), pages(size)),
            _ => {
                // SAFETY: `new` is a valid layout.
                let moved = unsafe { self.alloc(new) };
                if !moved.is_null() {
                    // SAFETY: both blocks are at least that long, and the old one is not used any more.
                    unsafe {
                        moved.copy_from_nonoverlapping(block, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                }
                moved
            }
        }
    }
}
