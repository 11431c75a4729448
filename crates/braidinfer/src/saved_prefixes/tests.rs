use std::fs;

use super::*;
use crate::engine::{BlockHash, block_hash};

const KEY: PrefixKey = PrefixKey([7; 32]);
const SHAPE: BlockShape = BlockShape { tokens: 4, data: 100 };

fn blocks(count: usize) -> Vec<SavedBlock> {
    let block = |number: usize| SavedBlock {
        tokens: (0..4).map(|token| (10 * number + token) as u32).collect(),
        data: (0..100).map(|byte| (byte * number) as u8).collect(),
    };
    (0..count).map(block).collect()
}

fn read_all(path: &std::path::Path, key: PrefixKey, shape: BlockShape) -> crate::Result<Vec<SavedBlock>> {
    let mut read = Vec::new();
    if let Some(mut file) = PromptFile::open(path, key, shape)? {
        while let Some(block) = file.next()? {
            read.push(block);
        }
    }
    Ok(read)
}

#[test]
fn a_prompt_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p");
    assert!(read_all(&path, KEY, SHAPE).expect("nothing is there").is_empty());
    write_file(&path, KEY, SHAPE, &blocks(3)).expect("it can be written");
    assert_eq!(read_all(&path, KEY, SHAPE).expect("it is whole"), blocks(3));
    write_file(&path, KEY, SHAPE, &blocks(1)).expect("it can be replaced");
    assert_eq!(read_all(&path, KEY, SHAPE).expect("it is whole"), blocks(1));
    for (key, shape) in [(PrefixKey([8; 32]), SHAPE), (KEY, BlockShape { data: 99, ..SHAPE })] {
        let error = read_all(&path, key, shape).expect_err("it is about something else").to_string();
        assert!(error.contains("which is another one's"), "{error}");
    }
}

#[test]
fn files_that_were_cut_or_changed_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p");
    write_file(&path, KEY, SHAPE, &blocks(3)).expect("it can be written");
    let whole = fs::read(&path).expect("it can be read");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("it can be cut");
        read_all(&path, KEY, SHAPE).expect_err("it was cut");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&path, &changed).expect("it can be changed");
        read_all(&path, KEY, SHAPE).expect_err("a bit was changed");
    }
    // Blocks in another order are another prompt.
    let mut swapped = whole.clone();
    let (start, stored) = (whole.len() - 3 * SHAPE.stored(), SHAPE.stored());
    swapped[start..start + stored].copy_from_slice(&whole[start + stored..start + 2 * stored]);
    fs::write(&path, &swapped).expect("it can be changed");
    read_all(&path, KEY, SHAPE).expect_err("blocks were swapped");
    let mut long = whole.clone();
    long.push(0);
    fs::write(&path, &long).expect("it can be changed");
    read_all(&path, KEY, SHAPE).expect_err("it is too long");
    // A number of blocks that would need more than there is.
    let mut huge = whole.clone();
    let count = whole.len() - 3 * SHAPE.stored() - 8;
    huge[count..count + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &huge).expect("it can be changed");
    read_all(&path, KEY, SHAPE).expect_err("it says that it is longer");
    fs::write(&path, "a letter to a friend, which is long enough to be read as the beginning of a saved prompt")
        .expect("it can be written");
    let error = read_all(&path, KEY, SHAPE).expect_err("it is a letter").to_string();
    assert!(error.contains("another file"), "{error}");
    read_all(folder.path(), KEY, SHAPE).expect_err("it is a folder");
}

fn hashes(blocks: &[SavedBlock]) -> Vec<BlockHash> {
    let mut before = None;
    let hash = |block: &SavedBlock| {
        before = Some(block_hash(before.as_ref(), &block.tokens));
        before.unwrap_or_default()
    };
    blocks.iter().map(hash).collect()
}

/// A folder that has kept these blocks.
fn kept(root: &std::path::Path, blocks: &[SavedBlock], most_blocks: u64) -> PrefixFolder {
    let bytes = most_blocks * SHAPE.stored() as u64;
    let folder = PrefixFolder::open(root, KEY, SHAPE, bytes).expect("it can be made");
    for (hash, block) in hashes(blocks).into_iter().zip(blocks) {
        folder.keep(hash, block.clone());
    }
    drop(folder);
    PrefixFolder::open(root, KEY, SHAPE, bytes).expect("it can be opened")
}

#[test]
fn a_folder_has_what_was_kept_and_no_more_than_it_may() {
    let root = tempfile::tempdir().expect("a folder");
    let (all, named) = (blocks(8), hashes(&blocks(8)));
    let folder = kept(root.path(), &all, 100);
    for (hash, block) in named.iter().zip(&all) {
        assert!(folder.has(hash));
        assert_eq!(folder.read(hash, &block.tokens).as_ref(), Some(block));
    }
    drop(folder);
    let small = kept(root.path(), &[], 3);
    assert_eq!(named.iter().filter(|hash| small.has(hash)).count(), 3);
    drop(small);
    let none = kept(root.path(), &all, 0);
    assert!(!named.iter().any(|hash| none.has(hash)));
    // Another key has a folder of its own.
    let other = PrefixFolder::open(root.path(), PrefixKey([8; 32]), SHAPE, 1 << 20).expect("it can be made");
    assert!(!named.iter().any(|hash| other.has(hash)));
}

#[test]
fn damaged_files_in_a_folder_are_nothing_and_go() {
    let root = tempfile::tempdir().expect("a folder");
    let (all, named) = (blocks(5), hashes(&blocks(5)));
    drop(kept(root.path(), &all, 100));
    let folder = fs::read_dir(root.path()).expect("listed").flatten().next().expect("one is there").path();
    let file = |index: usize| folder.join(format!("{}.kv", crate::digest::hex(&named[index])));
    let whole = fs::read(file(0)).expect("it can be read");
    fs::write(file(0), &whole[1..]).expect("it can be cut");
    let mut changed = fs::read(file(1)).expect("it can be read");
    changed[50] ^= 1;
    fs::write(file(1), changed).expect("it can be changed");
    fs::copy(file(3), file(2)).expect("it can be replaced");
    fs::remove_file(file(4)).expect("it can be removed");
    fs::create_dir(file(4)).expect("a folder can be made");
    fs::write(folder.join("notes.txt"), "not ours").expect("it can be written");
    let opened = PrefixFolder::open(root.path(), KEY, SHAPE, 1 << 20).expect("it can be opened");
    let found: Vec<bool> =
        named.iter().zip(&all).map(|(hash, block)| opened.read(hash, &block.tokens).is_some()).collect();
    assert_eq!(found, [false, false, false, true, false]);
    assert!(!file(0).exists() && !file(1).exists() && !file(2).exists() && folder.join("notes.txt").exists());
}
