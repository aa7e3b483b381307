"""ISMRMRD headers: what is written is read, and what cannot be read says so."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mri_example.data.header import NAMESPACE, Header
from mri_example.errors import InputError

sizes = st.tuples(*[st.integers(1, 1000)] * 3)
headers = st.builds(
    Header,
    sizes,
    sizes,
    center=st.integers(0, 500),
    maximum=st.integers(0, 999),
    scanner=st.sampled_from(["", "Skyra", "MAGNETOM Vida <3T>"]),
    trajectory=st.sampled_from(["", "cartesian", "radial"]),
    minimum=st.integers(0, 9),
)
KNEE = Header(encoded=(640, 368, 1), recon=(320, 320, 1), center=166, maximum=331)


@given(headers)
def test_reading_inverts_writing(header):
    assert Header.parse(header.xml()) == header


def test_measured_columns_lie_around_the_center_step():
    assert KNEE.padding == (18, 350)


def test_the_names_are_those_of_the_standard():
    assert f'<ismrmrdHeader xmlns="{NAMESPACE}">' in KNEE.xml().decode()


def test_other_elements_and_prefixes_are_read_past():
    xml = KNEE.xml().decode().replace("<encoding>", "<note>x</note><encoding>")
    for name in ("<", "</"):
        xml = re.sub(f"{name}(?=[a-zA-Z])", f"{name}i:", xml)
    assert Header.parse(xml.replace("xmlns=", "xmlns:i=").encode()) == KNEE


@pytest.mark.parametrize(
    "name", ["reconSpace", "matrixSize", "encodingLimits", "center"]
)
def test_a_missing_field_is_named(name):
    xml = KNEE.xml().decode().replace(name, "other")
    with pytest.raises(InputError, match=r"lacks .*: remove the data set"):
        Header.parse(xml.encode())


@pytest.mark.parametrize("value", ["", "many", "-3", "0", "1.5"])
def test_a_size_is_a_positive_number(value):
    xml = KNEE.xml().decode().replace("<x>320</x>", f"<x>{value}</x>")
    with pytest.raises(InputError, match="the ISMRMRD header cannot be read"):
        Header.parse(xml.encode())


@pytest.mark.parametrize("xml", [b"", b"<ismrmrdHeader", b"\x00\xff", 3])
def test_what_is_not_xml_is_refused(xml):
    with pytest.raises(InputError, match="the ISMRMRD header cannot be read"):
        Header.parse(xml)
