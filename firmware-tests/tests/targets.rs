//! Microcontrollers speak the wire: its tests, run on a Cortex-M4F.

use lichen_firmware_tests::machine::CORTEX_M4F;
use lichen_wire::golden;
use lichen_wire::testing::sessions;

#[test]
fn a_microcontroller_speaks_the_wire() {
    let Some(images) = CORTEX_M4F.programs() else { return };
    let golden: Vec<_> = golden::TESTS.iter().map(|(name, _)| *name).collect();
    let sessions: Vec<_> = sessions::TESTS.iter().map(|(name, _)| *name).collect();
    for (image, tests) in images.iter().zip([golden, sessions]) {
        let output = CORTEX_M4F.command(image).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {}\n{said}", image.display(), output.status);
        let passed: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("ok: ")).collect();
        assert_eq!(passed, tests, "{said}");
        let closing = said.lines().last().unwrap_or_default();
        assert!(closing.starts_with(&format!("{} tests passed", tests.len())), "{said}");
        println!("{}: {closing}", image.display());
    }
    assert_eq!(images.len(), 2, "an image without a heap and one with");
}
