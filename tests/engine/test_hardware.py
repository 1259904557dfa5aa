"""What the processor can do is read from the operating system's own words."""

from engine.hardware import parse_cpuinfo, read_processor

X86 = "processor\t: {core}\nmodel name\t: Some Xeon\nflags\t\t: fpu sse4_2 avx2 avx512f {more}\n\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd aes asimddp\nCPU part\t: 0xd40\n\n"


def test_vnni_and_amx_are_seen_on_x86(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(X86.format(core=0, more="avx512_vnni amx_int8 amx_bf16") * 2)
    processor = read_processor(file)
    assert processor.features == ("amx-bf16", "amx-int8", "avx2", "avx512", "vnni")
    assert processor.name == "Some Xeon"


def test_the_client_form_of_vnni_counts_too(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(X86.format(core=0, more="avx_vnni"))
    assert "vnni" in read_processor(file).features


def test_a_feature_that_one_core_lacks_does_not_count():
    name, flags = parse_cpuinfo(X86.format(core=0, more="avx512_vnni") + X86.format(core=1, more=""))
    assert "avx512_vnni" not in flags
    assert "avx2" in flags
    assert name == "Some Xeon"


def test_arm_words_are_understood(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(ARM)
    processor = read_processor(file)
    assert processor.features == ("dotprod", "neon")
    assert processor.name


def test_a_machine_that_says_nothing_still_has_a_processor(tmp_path):
    processor = read_processor(tmp_path / "missing")
    assert processor.logical_cores >= processor.physical_cores >= 1
    assert processor.memory_bytes > 0
    assert processor.name
