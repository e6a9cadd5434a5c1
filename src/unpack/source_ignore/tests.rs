use proptest::prelude::*;

use super::*;
use crate::oci::golden::unquote;

/// Rules of these patterns alone, without Flux's lists.
fn bare(lines: &[&[u8]], domain: &str) -> IgnoreRules {
    let mut patterns = Patterns::default();
    let domain: Domain = components(domain.as_bytes()).map(Box::from).collect();
    for line in lines {
        patterns.add(line, &domain);
    }
    IgnoreRules { patterns: Arc::new(patterns), ..IgnoreRules::default() }
}

fn rules(files: &[(&str, &str)], spec: Option<&str>) -> IgnoreRules {
    IgnoreRules::build(files.iter().map(|(directory, text)| (directory, text.as_bytes())), spec).unwrap()
}

fn excluded<'p>(rules: &IgnoreRules, paths: &[&'p str]) -> Vec<&'p str> {
    // A trailing slash makes a directory here.
    paths.iter().copied().filter(|path| rules.excludes(path, path.ends_with('/')).unwrap()).collect()
}

#[test]
fn matches_as_go_gits_matcher() {
    let lines: Vec<Vec<&str>> = include_str!("golden.txt").lines().map(|l| l.split('\t').collect()).collect();
    let paths: Vec<Vec<u8>> = lines.iter().filter(|l| l[0] == "P").map(|l| unquote(l[1])).collect();
    let mut seen = 0;
    for line in lines.iter().filter(|l| l[0] != "P") {
        seen += 1;
        let text = unquote(line[1]);
        let domain = line[2];
        // Single patterns as they are, with and without a rule below them that tells "no match" from "taken back in".
        let list: Vec<&[u8]> = if line[0] == "L" { text.split(|b| *b == b'\n').collect() } else { vec![&text] };
        let alone = bare(&list, domain);
        let mut patterns = Patterns::default();
        patterns.add(b"*", &Arc::default());
        let above = {
            let domain: Domain = components(domain.as_bytes()).map(Box::from).collect();
            list.iter().for_each(|line| patterns.add(line, &domain));
            IgnoreRules { patterns: Arc::new(patterns), ..IgnoreRules::default() }
        };
        let mut got = String::new();
        for path in &paths {
            for is_dir in [false, true] {
                let (alone, above) = (alone.excludes(path, is_dir).unwrap(), above.excludes(path, is_dir).unwrap());
                got.push(match (alone, above) {
                    (true, _) => 'x',
                    (false, false) if line[0] == "R" => 'i',
                    _ => '-',
                });
            }
        }
        assert_eq!(got, line[3], "{} {} in {domain:?}", line[0], line[1]);
    }
    assert!(seen > 900, "{seen}");
}

#[test]
fn leaves_out_the_defaults_where_nothing_is_said() {
    let paths = [
        ".git/",
        ".git/config",
        ".gitignore",
        "sub/.gitattributes",
        "image.jpg",
        "a/archive.tar.gz",
        "a.jpg/x.yaml",
        ".github/",
        ".github/workflows/workflow.yaml",
        ".github",
        "subdir/.flux.yaml",
        "subdir2/.sops.yaml",
        "workload.yaml",
        "workload.yml",
        "simple.txt",
        "jpg",
        "x.JPG",
        ".sourceignore",
        "appveyor.yml/x",
        "",
    ];
    let want = [
        ".git/",
        ".git/config",
        ".gitignore",
        "sub/.gitattributes",
        "image.jpg",
        "a/archive.tar.gz",
        "a.jpg/x.yaml",
        ".github/",
        ".github/workflows/workflow.yaml",
        "subdir/.flux.yaml",
        "subdir2/.sops.yaml",
        "appveyor.yml/x",
    ];
    assert_eq!(excluded(&IgnoreRules::default(), &paths), want);
    for (files, spec) in [
        (vec![], Some("")),
        (vec![], Some("# only a comment\n\n  \n\u{a0}\r\n")),
        (vec![("", "#\n"), ("a", "")], None),
        (vec![(".git", "workload.yaml\n"), ("a/.git/b", "*\n")], None),
    ] {
        assert_eq!(excluded(&rules(&files, spec), &paths), want, "{files:?} {spec:?}");
    }
}

#[test]
fn any_pattern_drops_the_defaults_but_not_the_version_control_list() {
    let paths = [".git/config", "x/.gitmodules", "horse.jpg", ".github/w.yaml", "foo.txt", "z/last.txt", "last.txt"];
    for (files, spec, want) in [
        (vec![], Some("foo.txt"), vec![".git/config", "x/.gitmodules", "foo.txt"]),
        (vec![("z", "last.txt")], None, vec![".git/config", "x/.gitmodules", "z/last.txt"]),
        (vec![("nowhere", "x")], None, vec![".git/config", "x/.gitmodules"]),
        (vec![], Some("!.git/"), vec!["x/.gitmodules"]),
    ] {
        assert_eq!(excluded(&rules(&files, spec), &paths), want, "{files:?} {spec:?}");
    }
}

#[test]
fn nested_files_count_below_their_directory_and_spec_ignore_wins() {
    let files = [("z", "last.txt"), ("", "root.txt\n*.bak"), ("a/b", "subdir.txt\n!keep.bak\n")];
    let paths = [
        "root.txt",
        "a/root.txt",
        "e/last.txt",
        "z/last.txt",
        "z/y/last.txt",
        "a/c/subdir.txt",
        "a/b/subdir.txt",
        "a/b/c/subdir.txt",
        "keep.bak",
        "a/b/keep.bak",
        "a/b/x.bak",
        "a/b",
    ];
    assert_eq!(
        excluded(&rules(&files, None), &paths),
        [
            "root.txt",
            "a/root.txt",
            "z/last.txt",
            "z/y/last.txt",
            "a/b/subdir.txt",
            "a/b/c/subdir.txt",
            "keep.bak",
            "a/b/x.bak"
        ]
    );
    assert_eq!(
        excluded(&rules(&files, Some("!root.txt\n/a/b/keep.bak\n!/z")), &paths),
        ["a/b/subdir.txt", "a/b/c/subdir.txt", "keep.bak", "a/b/keep.bak", "a/b/x.bak"]
    );
    // The order in which they are given has no say: the walk's does.
    let backwards: Vec<_> = files.into_iter().rev().collect();
    assert_eq!(excluded(&rules(&backwards, None), &paths), excluded(&rules(&files, None), &paths));
    let sibling = [("a-b", "!x"), ("a", "x"), ("a/b", "!x")];
    assert_eq!(excluded(&rules(&sibling, None), &["a/x", "a/b/x", "a-b/x"]), ["a/x"]);
}

#[test]
fn reads_lines_as_gos_scanner_does() {
    let read = |text: &[u8]| lines(text).map(<[u8]>::to_vec).collect::<Vec<_>>();
    assert_eq!(read(b"a\r\r\nb\r\n\r\n#c\n #d\n  \n\xff\nc\r"), [&b"a\r"[..], b"b", b" #d", b"\xff", b"c"]);
    let line = |n: usize| [b"a\n".to_vec(), vec![b'x'; n], b"\nb".to_vec()].concat();
    assert_eq!(read(&line(65_535)).len(), 3);
    assert_eq!(read(&line(65_536)), [b"a"]);
}

#[test]
fn takes_the_spelling_of_paths_lightly() {
    let rules = rules(&[("./a/", "x")], None);
    assert_eq!(excluded(&rules, &["a/x", "./a/x", "a//x", "x", "./"]), ["a/x", "./a/x", "a//x"]);
    assert_eq!(rules.excludes(b"a/\xff/x", false), Ok(true));
}

#[test]
fn bounds_the_text() {
    let half = "a".repeat(MAX_TEXT_BYTES / 2);
    let build = |spec: &str| IgnoreRules::build([("", half.as_bytes())], Some(spec));
    assert!(build(&half).is_ok());
    let error = build(&format!("{half}b")).unwrap_err();
    assert_eq!((error.class(), error), (Class::Limit, IgnoreError::TooLong(MAX_TEXT_BYTES + 1)));
}

#[test]
fn bounds_the_work_over_all_paths() {
    // 100 000 names cost a look-up.
    let names: String = (0..100_000).map(|n| format!("name{n}\n")).collect();
    let rules_of_names = rules(&[], Some(&names));
    for n in 0..1000 {
        assert_eq!(rules_of_names.excludes(format!("a/b/name{n}"), false), Ok(true));
    }
    assert!(rules_of_names.spent.load(Ordering::Relaxed) < 10_000);
    // 100 000 globs are tried one by one, until the budget is spent; then there are no more answers.
    let globs: String = (0..100_000).map(|n| format!("{n}?\n")).collect();
    let mut rules_of_globs = rules(&[], Some(&globs));
    rules_of_globs.budget = 10_000_000;
    let answers = (0..1000).take_while(|_| rules_of_globs.excludes("x/y/z", false) == Ok(false)).count();
    assert!((1..20).contains(&answers), "{answers}");
    let error = rules_of_globs.excludes("x", false).unwrap_err();
    assert_eq!((error.class(), error), (Class::Limit, IgnoreError::TooMuchWork));
    assert_eq!(rules_of_globs.spent.load(Ordering::Relaxed), 10_000_000);
    // One pattern and one name can be expensive too.
    let stars = format!("{}b", "*a".repeat(100_000));
    let mut rules_of_stars = rules(&[], Some(&stars));
    rules_of_stars.budget = 100_000;
    assert_eq!(rules_of_stars.excludes("a".repeat(250), false), Ok(false));
    let slow = format!("*{}b", "a".repeat(60_000));
    let mut rules_of_slow = rules(&[], Some(&slow.replacen('a', "?", 1)));
    rules_of_slow.budget = 100_000;
    assert_eq!(rules_of_slow.excludes("a".repeat(250), false), Err(IgnoreError::TooMuchWork));
}

proptest! {
    #[test]
    fn no_pattern_and_no_path_make_the_matcher_panic(
        text in proptest::collection::vec(proptest::sample::select(&b"ab/*?[]^-\\! #.\xff\xc3\xa9\n\r"[..]), 0..40),
        path in proptest::collection::vec(proptest::sample::select(&b"ab/.[]\xff\xc3\xa9"[..]), 0..20),
        is_dir in any::<bool>(),
    ) {
        let rules = IgnoreRules::build([("a", &text[..]), ("", &text[..])], None).unwrap();
        prop_assert!(rules.excludes(&path, is_dir).is_ok());
    }

    #[test]
    fn the_maps_shortcut_says_what_the_matcher_says(
        lines in proptest::collection::vec("!?(\\*\\*/)?[ab]{1,2}/?", 1..8),
        path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
        is_dir in any::<bool>(),
    ) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        // The same patterns, written so that they are no plain names: a class of one letter.
        let slow: Vec<String> = lines.iter().map(|l| l.replace('a', "[a]").replace('b', "[b]")).collect();
        let fast = bare(&lines.iter().map(|l| l.as_bytes()).collect::<Vec<_>>(), "");
        let slow = bare(&slow.iter().map(|l| l.as_bytes()).collect::<Vec<_>>(), "");
        prop_assert_eq!(fast.excludes(&path, is_dir), slow.excludes(&path, is_dir));
    }
}
