"""Constructs of jinja2 and Python that chat templates are written with: make_chat_fixtures.py renders each of them."""

import re

VARIABLES = {
    "text": "a b",
    "list": [3, 1, 2],
    "map": {"k": [1], "z": "y", "items": {"type": "string"}, "n": None},
    "floats": [1e-7, 1e20, 0.1, 100.0, 1.5, -0.0],
    "people": [
        {"name": "Bo", "age": 3, "in": {"city": "Oslo"}},
        {"name": "al", "age": 1, "in": {"city": "Bern"}},
        {"name": "Cy", "age": 3, "in": {"city": "oslo"}},
    ],
    "none": None,
    "yes": True,
    "int": 7,
    "float": 2.5,
    "empty": [],
}

PRINTED = r"""
{{ ['number', 'null'] | string }} {{ 1e-7 | string }} {{ 'x' ~ ['a'] ~ 1e20 }} {{ [['a']] | join }}
{{ (1, 2) }} {{ (1,) }} {{ () }} {{ [(1, 'a'), {'k': (2, 3)}] }} {{ (1, 2) | tojson }} {{ (1, 2) | list }} {{ 1, 2 }}
{{ true }} {{ none }} {{ yes ~ none }} {{ [true, none, undefined_thing is defined] }} {{ map }} {{ map.k }}
{{ floats }} {{ floats | join(' ') }} {{ floats | tojson }} {{ 1.0 }} {{ 1e16 }} {{ 1e15 }} {{ 123456789.125 }} {{ 0.0001 }} {{ 0.00001 }}
{{ "it's" }} {{ ["it's", 'say "x"', 'both \' and "', 'tab\t', 'back\\slash', 'é', '\x00\x1f\x7f', '\u00a0\u200b\ufeff', 'a\nb'] }}
{{ map.items() }} {{ map.keys() }} {{ map.values() }} {{ map.items() | list }} {{ map | items | list }} {{ map.keys() | list | length }}
{{ {'a': 1, 2: 'b', none: true, 1.5: []} }} {{ {'a': 1, 2: 'b', none: true, 1.5: []} | tojson }} {{ {} }} {{ [[], {}, ''] }}
{{ yes | string | title }} {{ none | string | upper }} {{ [1, 'a', none] | join('|') }} {{ ['a', none, true, 1.0] | join(', ') }}
{{ 'a' ~ none ~ true ~ 1.0 ~ undefined_thing ~ 'b' }} {{ 1 ~ 2 }} {{ (1 ~ 2) | int + 1 }} {{ list ~ '' }} {{ ('a', 'b') | string }}
{{ people | map(attribute='name') | list }} {{ people | map(attribute='in.city') | join(',') }} {{ people | map(attribute='x', default='-') | list }}
{% print 'printed' %} {% print 1, [2], none %}x
{%- print text -%} y
{{ 10 ** 20 }} {{ 2 ** 62 * 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 2 ** -1 }} {{ 2 ** 0.5 }}
{{ true + 1 }} {{ true * 3 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' * 2 }} {{ 2 * [1] }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ (1, 2) * 2 }} {{ -true }} {{ +1 }} {{ - 3 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1 != 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ (1, 2) == [1, 2] }} {{ [1] == [1.0] }} {{ {'a': 1} == {'a': 1} }}
{{ 1 in (1, 2) }} {{ 'a' in {'a': 1} }} {{ 'b' not in 'abc' }} {{ 1 in undefined_thing }} {{ none in [none] }} {{ 'k' in map.keys() }} {{ not 1 in [2] }}
{{ 'a\x41\u00e9\U0001F600\101\a\q\/' }} {{ "\"'\\" }} {{ 'a' "b" 'c' }} {{ 'line\
continued' }} {{ '{% generation %}' }} {{ "{{ x }} {% endgeneration %}" }}
{{ 1_000 + 0x1f + 0b11 + 0o17 }} {{ 1e3 }} {{ 1.5e-3 }}
{{ [1, 2, 3,] }} {{ {'a': 1,} }} {{ (1, 2,) }}
{{ 3 | float }} {{ '3.7' | int }} {{ ' 12 ' | int }} {{ 'x' | int }} {{ 'x' | int(-1) }} {{ 'ff' | int(0, 16) }} {{ '0x1f' | int(base=16) }} {{ 3.9 | int }} {{ -3.9 | int }} {{ none | int }} {{ true | int }} {{ '1e3' | int }} {{ '1_000' | int }} {{ [] | int(9) }}
{{ '1e3' | float }} {{ 'x' | float }} {{ 'x' | float(1.5) }} {{ true | float }} {{ 'inf' | float }} {{ 'nan' | float }} {{ 'nan' | float | tojson }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 7 | round }} {{ 7 | round(1) }} {{ 1.25 | round(1) }} {{ 1234 | round(-2) }} {{ 1250.0 | round(-2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.9 | round(method='floor') }} {{ 2.71 | round(1, 'ceil') }} {{ 42.55 | round | int }}
{{ -3 | abs }} {{ -2.5 | abs }} {{ 5 | abs }}
"""

TESTS = r"""
{{ none is iterable }} {{ 'a' is iterable }} {{ map is iterable }} {{ undefined_thing is iterable }} {{ 1 is iterable }} {{ (1,) is iterable }} {{ map.keys() is iterable }}
{{ 'a' is sequence }} {{ map is sequence }} {{ list is sequence }} {{ none is sequence }} {{ undefined_thing is sequence }} {{ (1, 2) is sequence }} {{ map.keys() is sequence }} {{ 1 is sequence }}
{{ true is number }} {{ 1 is number }} {{ 1.5 is number }} {{ '1' is number }} {{ true is integer }} {{ 1 is integer }} {{ 1.0 is integer }} {{ 1.0 is float }} {{ 1 is float }} {{ true is boolean }} {{ 1 is boolean }}
{{ true is true }} {{ 1 is true }} {{ false is false }} {{ 0 is false }} {{ none is none }} {{ undefined_thing is none }} {{ 0 is none }} {{ none is defined }} {{ undefined_thing is undefined }}
{{ map is mapping }} {{ list is mapping }} {{ none is mapping }} {{ 'a' is string }} {{ none is string }} {{ ['a'] is string }} {{ map is not mapping }}
{{ 'abc' is lower }} {{ 'Abc' is lower }} {{ 'ABC' is upper }} {{ '1' is upper }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }}
{{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 1 is lt 2 }} {{ 2 is ge 2 }} {{ 3 is greaterthan 2 }} {{ 1 is in [1, 2] }} {{ 3 is not in [1, 2] }} {{ 'a' is equalto 'a' }} {{ 1 is sameas 1 }} {{ none is sameas none }} {{ true is sameas 1 }}
{{ 'upper' is filter }} {{ 'nothing' is filter }} {{ 'odd' is test }} {{ 'nothing' is test }} {{ range is callable }} {{ 'a' is callable }} {{ 'a' is escaped }}
{{ 'yes' if list is defined and list is not string and list is iterable else 'no' }} {{ (none is none) and not (none is defined and false) }}
{{ none.x is defined }} {{ 'a'.x is defined }} {{ list.x is undefined }} {{ 5 .x is defined }} {{ map.nothing is defined }} {{ map['nothing'] is defined }} {{ list[9] is defined }} {{ 'abc'[9] is defined }} {{ none['x'] is defined }} {{ map.items is defined }} {{ map.items is mapping }} {{ map['items'] is mapping }} {{ map.get is callable }} {{ people[0].name }} {{ list.0 }} {{ list['0'] is defined }}
{{ [1, 2] is sequence and [1, 2] is not mapping }} {{ undefined_thing | length }} {{ undefined_thing | list }} {{ undefined_thing | join }}|{{ undefined_thing | upper }}|{{ undefined_thing | default('d') }} {{ none | default('d') }} {{ none | default('d', true) }} {{ '' | d('e', boolean=true) }} {{ false | default('x') }}
{{ 'truthy' if list | map('string') else 'falsy' }} {{ 'truthy' if empty | map('string') else 'falsy' }} {{ 'truthy' if empty | select | list else 'falsy' }} {{ 'truthy' if map.keys() else 'falsy' }} {{ 'truthy' if {}.keys() else 'falsy' }} {{ 'truthy' if () else 'falsy' }} {{ 'truthy' if 0.0 else 'falsy' }}
{% set once = list | map('string') %}{{ once | list }}{{ once | list }}{% set again = list | select('odd') %}{% for x in again %}{{ x }}{% endfor %}{% for x in again %}{{ x }}{% else %}none left{% endfor %}
"""

FILTERS = r"""
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, '-') | list }} {{ [1, 2, 3, 4, 5] | slice(2) | list }} {{ [1, 2, 3, 4, 5] | slice(3, 'x') | list }}
{{ list | sum }} {{ people | sum(attribute='age') }} {{ [1.5, 2] | sum(start=10) }} {{ [[1], [2]] | sum(start=[]) }} {{ list | max }} {{ list | min }} {{ ['b', 'A'] | min }} {{ ['b', 'A', 'C'] | max(case_sensitive=true) }} {{ people | max(attribute='age') }} {{ empty | max is defined }}
{% for g in people | groupby('age') %}{{ g.grouper }}:{{ g.list | map(attribute='name') | join('+') }};{{ g[0] }} {% endfor %}{% for city, ps in people | groupby('in.city') %}{{ city }}={{ ps | length }} {% endfor %}{% for k, v in people | groupby('x', default='none') %}{{ k }}{{ v | length }}{% endfor %}
{{ people | sort(attribute='name') | map(attribute='name') | list }} {{ people | sort(attribute='age,name') | map(attribute='name') | list }} {{ list | sort(reverse=true) }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A', 'c'] | sort(case_sensitive=true) }} {{ 'cab' | sort }}
{{ map | dictsort }} {{ {'b': 1, 'A': 2} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'A': 2} | dictsort(by='value', reverse=true) }} {{ map | list }} {{ 'abc' | list }} {{ (1, 2) | first }} {{ 'abc' | first }}{{ 'abc' | last }} {{ list | last }} {{ map | first }}
{{ ['b', 'a', 'B', 'b'] | unique | list }} {{ ['b', 'a', 'B'] | unique(case_sensitive=true) | list }} {{ people | unique(attribute='age') | map(attribute='name') | list }} {{ list | reverse | list }} {{ 'abc' | reverse }} {{ list | length }} {{ list | count }} {{ 'aé' | length }} {{ map | length }}
{{ people | selectattr('age', 'gt', 1) | map(attribute='name') | list }} {{ people | rejectattr('age', 'equalto', 3) | list | length }} {{ people | selectattr('in.city', '==', 'Oslo') | list | length }} {{ people | selectattr('x') | list }} {{ people | selectattr('x', 'undefined') | list | length }} {{ list | select('odd') | list }} {{ list | reject('in', [1]) | list }} {{ [0, 1, '', 'a'] | select | list }} {{ ['a', 1] | select('string') | list }}
{{ list | map('string') | join('-') }} {{ ['a ', ' b'] | map('trim') | list }} {{ ['a'] | map('replace', 'a', 'b') | list }} {{ ['x'] | map('default', 'd') | list }} {{ [[1, 2], [3]] | map('length') | list }} {{ [[2, 1]] | map('sort') | map('first') | list }} {{ [['a', 'b']] | map('join', '-') | first }} {{ [1, 2] | map('tojson') | join }}
{{ 'hello world-foo (bar)' | title }} {{ "it's a DOG" | title }} {{ 'hELLO World' | capitalize }} {{ 'Straße' | upper }} {{ 'ÀB' | lower }} {{ true | upper }} {{ 5 | lower }} {{ none | capitalize }} {{ 1.5 | title }}
{{ 'abc def ghi jkl' | truncate(9) }} {{ 'abc def ghi jkl' | truncate(9, true) }} {{ 'abc def ghi' | truncate(9) }} {{ 'abc def ghi' | truncate(9, leeway=0) }} {{ 'abcdefghij klm' | truncate(8, false, '..', 0) }} {{ 'Üabc def' | truncate(5, true, '', 0) }}
{{ 'a b/c?d=é&e' | urlencode }} {{ {'a b': 'c/d', 'e': 1} | urlencode }} {{ [('a', 'b c'), ('d', 2)] | urlencode }} {{ 5 | urlencode }} [{{ 'ab' | center(7) }}] [{{ 'abc' | center(6) }}] [{{ 'ab' | center }}]
{{ '%s-%s' | format('a', 1) }} {{ '%(x)s %(y)03d' | format(x='a', y=7) }} {{ '%5.2f|%-5s|%+d|%x|%%|%e|%g|%r|%5s' | format(3.14159, 'a', 5, 255, 12345.678, 0.0001, 'q', 'b') }} {{ '%s' % 'x' }} {{ '%s %s' % (1, [2]) }} {{ '%d items' % 3 }} {{ '%.1f' % 2.25 }} {{ '%05d' % -42 }} {{ '%s' % none }} {{ '%(a)s' % {'a': 1} }} {{ '100%%' % () }} {{ '%c%c' % ('a', 98) }} {{ '%o %X %#x' % (8, 255, 255) }} {{ '%s' % [1, 2] }} {{ '%.3s' % 'abcdef' }} {{ '%i' % 3.9 }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\nb' | indent('> ') }}|{{ 'a\nb' | indent(width=1, first=true) }}|{{ 'a\r\nb\n' | indent(1) }}|{{ '' | indent(2, true) }}|
{{ 'aXbXc' | replace('X', '-') }} {{ 'aXbXc' | replace('X', '-', 1) }} {{ 123 | replace(2, 'x') }} {{ 'ab' | replace('', '-') }} [{{ '  a ' | trim }}] {{ 'xxaxx' | trim('x') }} {{ 'a' | string }} {{ 'a b  c_d é' | wordcount }} {{ '<a href="x">it\'s & </a>' | e }} {{ '<b>x</b> <!-- c --> &amp;  y' | striptags }} {{ {'a': 'x<', 'b': none, 'c': 1} | xmlattr }} {{ '<' | safe }} {{ '<' | escape }}
{{ 1 | filesizeformat }} {{ 500 | filesizeformat }} {{ 1500 | filesizeformat }} {{ 1500000 | filesizeformat(true) }} {{ 10 ** 13 | int }} {{ (10 ** 9) | filesizeformat }} {{ 'x' | attr('upper') is defined }} {{ map | attr('k') is defined }} {{ people | join(', ', attribute='name') }} {{ 'abc' | join('-') }} {{ [] | join(',') }}
{{ map | tojson }} {{ map | tojson(indent=2) }} {{ [1, [2, {'a': []}]] | tojson(indent=1) }} {{ 'é<&>\'"\u2028\x7f\x01' | tojson }} {{ 'é😀' | tojson(ensure_ascii=true) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }} {{ {'a': 1} | tojson(separators=[';', '=']) }} {{ [1.0, 1e100, true, none, 'a'] | tojson }} {{ {'a': {}} | tojson(indent=4) }} {{ {'a': 1} | tojson(false, 1) }} {{ [1] | tojson(indent='--') }} {{ ('a', 'b') | tojson }}
"""

METHODS = r"""
[{{ 'ab'.center(6) }}] [{{ 'ab'.center(7, '*') }}] {{ '42'.zfill(5) }} {{ '-42'.zfill(5) }} [{{ 'a'.ljust(3) }}] [{{ 'a'.rjust(3, '.') }}] {{ 'Straße'.casefold() }} {{ 'aBc'.swapcase() }} {{ 'abcabc'.index('c') }} {{ 'abcabc'.rindex('c') }} {{ 'abc'.find('z') }} {{ 'abcabc'.find('a', 1) }} {{ 'abcabc'.rfind('a', 0, 3) }} {{ 'aXa'.count('a', 1) }} {{ 'aaa'.count('') }}
{{ "they're bill's".title() }} {{ 'hello'.capitalize() }} {{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c d'.split(none, 2) }} {{ 'a b c d '.split(maxsplit=1) }} {{ ' a b c d '.rsplit(none, 1) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ 'a-b-c'.split('-', 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a\nb\r\nc\x0bd\n'.splitlines() }} {{ 'a\nb\n'.splitlines(true) }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }}
{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('bc', 1) }} {{ 'abc'.startswith('b', 1) }} [{{ ' a '.strip() }}] {{ 'xxaxx'.lstrip('x') }} {{ 'xyaxy'.strip('xy') }} [{{ ' a '.rstrip() }}] {{ 'prefix'.removeprefix('pre') }} {{ 'prefix'.removesuffix('fix') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ '-'.join(['a', 'b']) }} {{ ','.join('abc') }} {{ 'a\tb'.expandtabs(4) }} {{ 'ÜX'.lower() }} {{ 'ß'.upper() }}
{{ 'abc'.isalpha() }} {{ 'a1'.isalnum() }} {{ '12'.isdigit() }} {{ '1.2'.isnumeric() }} {{ ' '.isspace() }} {{ 'Ab'.istitle() }} {{ 'ab'.islower() }} {{ 'AB'.isupper() }} {{ ''.isalpha() }} {{ 'a_1'.isidentifier() }} {{ 'é'.isascii() }} {{ '12'.isdecimal() }} {{ 'a\n'.isprintable() }}
{{ '{} {}'.format('a', 1) }} {{ '{1}{0}'.format('a', 'b') }} {{ '{x}'.format(x=1) }} {{ '{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{:x}|{:+}|{:%}|{:e}'.format('a', 'b', 'c', 42, 3.14159, 1234567, 255, 3, 0.25, 1234.5) }} {{ '{0[a]} {1.city}'.format({'a': 1}, people[0]['in']) }} {{ '{{}} {!r}'.format('q') }} {{ '{:*^9}'.format('mid') }} {{ '{:{w}}|'.format('a', w=4) }} {{ '{}'.format(none) }} {{ '{}'.format([1, 'a']) }} {{ '{:g} {:g} {:.3g}'.format(1e10, 0.5, 1234.5) }} {{ '{:_}'.format(10000) }} {{ '{:b} {:#o}'.format(5, 8) }} {{ '{:.3}'.format('abcdef') }} {{ '{:6.2f}|'.format(2.5) }} {{ '{:<6}|{:6}|'.format(1, 2) }} {{ '{:.2}'.format(1234.5) }}
{{ map.get('k') }} {{ map.get('x') }} {{ map.get('x', 'd') }} {{ map.items() | list | length }} {{ {'items': 1}.items() | list }} {{ {'get': 1}.get('get') }} {{ map.copy() == map }} {{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ (1, 2, 1).count(1) }} {{ (1, 2).index(2) }} {{ 'abc'[::-1] }} {{ 'abcdef'[1:-1] }} {{ 'abcdef'[-3:] }} {{ 'abcdef'[::2] }} {{ 'abcdef'[4:1:-1] }} {{ list[::-1] }} {{ list[1:] }} {{ list[:-1] }} {{ list[-1] }} {{ (1, 2, 3)[1:] }} {{ list[5:] }} {{ 'é😀x'[1] }} {{ list[true] }} {{ list[:none] }}
{{ map['items'].type }} {{ map.z }} {{ map['z'] }} {{ people[0]['in'].city }} {{ people[-1].name }} {{ (map.k)[0] }} {{ ('a', 'b')[1] }} {{ {'a': {'b': [1, {'c': 2}]}}.a.b[1].c }} {% set f = map.get %}{{ f('z') }} {{ 'a b'.split()[0].upper() }} {{ ('%s' % 'a').upper() }} {{ text.split(' ') | map('upper') | join('-') }} {{ -list[0] }} {{ -map.k[0] + 1 }} {{ 'x'.upper() ~ 'y' }}
"""

STATEMENTS = r"""
{% macro m(a, b='d') %}[{{ a }}|{{ b }}|{{ varargs }}|{{ kwargs }}]{% endmacro %}{{ m(1) }} {{ m(1, 2, 3, 4) }} {{ m(1, c=3) }} {{ m(a=1, b=2, x='y') }} {{ m() }}
{% macro before() %}{{ after(1, 2) }}{% endmacro %}{% macro after(x) %}{{ x }}{{ varargs }}{% endmacro %}{{ before() }}
{% macro only() %}{{ kwargs | dictsort }}{% endmacro %}{{ only(b=1, a=2) }} {{ only() }} {{ only(**{'z': 1}) if false else '' }}
{% macro v(a, b='d') %}[{{ a }}|{{ b }}|{{ varargs }}]{% endmacro %}{{ v(*list) }} {{ v(0, *list) }} {{ v(*[1]) }} {{ v(1, 2, *'xy') }} {{ v(1, 2, 3, *(4, 5)) }} {{ v(0, *[], b=7) }}
{% macro w(a) %}{{ a }}|{{ kwargs }}{% endmacro %}{{ w(**{'a': 1, 'z': 2}) }} {{ w(1, y=3, **{'z': 2}) }} {% macro x(a) %}{{ a }}|{{ varargs }}|{{ kwargs }}{% endmacro %}{{ x(*[1, 2], y=3, **{'z': 4}) }}
{% macro box(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call box('b') %}in {{ text }}{% endcall %} {% macro each(xs) %}{% for x in xs %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(x, i) each(['a', 'b']) %}{{ i }}{{ x }};{% endcall %}
{% macro deep(n) %}{{ n }}{% if n %}{{ deep(n - 1) }}{% endif %}{% endmacro %}{{ deep(12) }}
{% set c = cycler('a', 'b', 'c') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{% set x = c.reset() %}{{ c.next() }} {% set j = joiner('; ') %}{% for x in list %}{{ j() }}{{ x }}{% endfor %} {% set k = joiner() %}{{ k() }}{{ k() }}
{% for x in list %}{{ loop.cycle('odd', 'even') }}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.previtem is defined }}{{ loop.nextitem | default('-') }}{{ loop.changed(x) }};{% endfor %}
{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}{% for k in map %}{{ k }}{% endfor %}{% for c in 'ab' %}{{ c }}.{% endfor %}{% for x in undefined_thing %}x{% else %}nothing{% endfor %}{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for x in list if x > 1 %}{{ x }}{% endfor %}{% for x in (1, 2) %}{{ x }}{% endfor %}
{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %} {% for x in [[1, [2, [3]]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set t = 1, 2 %}{{ t }} {% set block %}<{{ text }}>{% endset %}{{ block }}{{ block | length }} {% set up | upper %}abc{% endset %}{{ up }} {% set ns = namespace(n=0, l=[]) %}{% for x in list %}{% set ns.n = ns.n + x %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.n }}{{ ns.l }} {% set ns2 = namespace({'a': 1}, b=2) %}{{ ns2.a }}{{ ns2.b }} {{ ns2.c is defined }}
{% with q = 1, w = 2 %}{{ q + w }}{% endwith %}{{ q is defined }} {% filter upper %}abc{{ text }}{% endfilter %} {% raw %}{{ raw }}{% endraw %} {# comment #}{% if false %}{% elif none %}{% else %}else{% endif %} {{ 'a' if true }} [{{ 'a' if false }}] {{ 'a' if false else 'b' if false else 'c' }}
{% generation %}said {{ text }}{% set inner = 1 %}{% endgeneration %}{{ inner is defined }} {%- generation -%} trimmed {%- endgeneration -%} . {% set q = '{%- generation -%}' %}{{ q }} {% for x in list %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}
{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(5, 0, -2) | list }} {{ range(3)[1] }} {{ dict(a=1, b=2) }} {{ dict([('a', 1)]) }} {{ dict({'a': 1}, b=2) }} {{ dict() }} {{ strftime_now('%Y-%m-%d') }}
{% block b %}in a block{% endblock %} {% set x = 5 %}{% if true %}{% set x = 6 %}{% endif %}{{ x }} {% for i in [1] %}{% set x = 7 %}{% endfor %}{{ x }} {{ self.b() }}
{{- 'trimmed' -}}   
   {%+ if true %} kept{% endif +%}
   {% if true %}
  line
   {% endif %}
end
"""

REWRITTEN = [
    '{{ 1 + 2 * 3 - 4 }} {{ 10 - 3 + 2 - 1 }} {{ 7 // 2 * 2 + 7 % 2 }} {{ 2 ** 3 * 2 }} {{ -1 + 2 }} {{ 1 - -1 }}',
    "{{ 'a' + 'b' ~ 'c' }} {{ 2 * 3 ~ 4 }} {{ 'ab' * 2 }} {{ 2 * 'ab' * 2 }} {{ 1.5 + 1 }} {{ 3 * 0.5 }} {{ true + 1 }}",
    '{{ [1] + [2, 3] + list }} {{ (list + [4])|length }} {{ [1] * 3 }} {{ (1, 2)[1:] }} {{ ()|length }} {{ (1,) }}',
    "{{ text.split(' ')[0].upper() }} {{ text.split(' ')|map('upper')|join('-') }} {{ text[::-1] ~ text[1:2] }}",
    "{{ map.k + [2] }} {{ map['z'] + 'x' }} {{ {'a': {'b': 1 + 1}}['a'].b }} {{ map|items|list }} {{ map|tojson }}",
    "{{ 'x' if 1 + 1 == 2 else 'y' ~ 'z' }} {{ 'x' if 0 }} {{ ('x' if 0 else 'y' if 1 else 'z') ~ '!' }}",
    "{{ 'ab' in text ~ 'ab' }} {{ 1 not in list }} {{ not 1 + 1 == 3 }} {{ 1 < 2 < 3 }} {{ 1 + 1 > 1 and 2 or 3 }}",
    '{{ missing is defined }} {{ 4 is divisibleby 2 }} {{ 4 is divisibleby(3) }} {{ text is string and list is sequence }}',
    '{{ missing|default(\'d\' ~ \'e\') }} {{ \'a\'\n~ \'b\' }} {{ \'a\' \'b\' "c" ~ \'it\\\'s\' }} {{ \'}}\' ~ \'%}\' }}',
    "{% set a, b = 1, 2 %}{{ a + b }}{% set c = 'x', 'y' %}{{ c[1] }}{% set d %}{{ a }}{{ b }}{% endset %}{{ d ~ d }}",
    '{% set ns = namespace(a=0) %}{% for i in range(4) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}',
    "{% for x in list|sort if x > 1 %}{{ loop.index ~ x ~ ',' }}{% else %}none{% endfor %}",
    "{% for key, value in map.items() %}{{ key ~ value }}{% endfor %}{% for x in 'ab' ~ 'c' %}{{ x }}{% endfor %}",
    '{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}',
    "{% macro m(a, b='x' ~ 'y', c=1 + 1) %}{{ a }}{{ b }}{{ c }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}{{ m(1, c=5) ~ m('q' + 'r') }}{% call m(2) %}in{% endcall %}",
    '{% call(x) m2() %}{{ x ~ 1 }}{% endcall %}',
    "{% macro m2() %}{{ caller('y') }}{% endmacro %}{% call(x) m2() %}{{ x ~ 1 }}{% endcall %}",
    "{% with a = 1 + 1, b = 'c' ~ 'd' %}{{ a }}{{ b }}{% endwith %}{% filter upper|replace('A', 'b' ~ 'c') %}a{{ 1 + 1 }}{% endfilter %}",
    '{% set x | upper %}ab{% endset %}{{ x }}{% if 1 - 1 %}a{% elif 1 + 1 == 2 %}b{% else %}c{% endif %}',
    '{# a ~ b #}{% raw %}{{ a ~ b }}{% endraw %}{%- raw -%} {% x %} {%- endraw -%} {{- 1 -}} {{ 2 }}',
    '{{ 1.0 }} {{ 1e3 }} {{ 0x1f + 0b11 }} {{ 1_000 }} {{ list.0 }} {{ 1.5e-3 * 2 }} {{ list[0] + list[-1] }}',
    "{% block a %}{{ 1 + 1 }}{% endblock a %}{% autoescape false %}{{ '<' ~ '>' }}{% endautoescape %}",
    "{{ text.split(' ') == ['a', 'b'] }} {{ [1, 2] == list[1:] }} {{ {'a': 1} == {'a': 1} }} {{ [1] < [2] }}",
    "{{ list|sum }} {{ list|first + 1 }} {{ list|max * 2 }} {{ list|sort|join(',') }} {{ text|title }} {{ dict(a=1)['a'] }}",
    "{{ 'x' * missing }}",
    "{{ 'x' + 1 }}",
    '{{ {} + [] }}',
    '{{ 1 + }}',
    '{{ (1 }}',
    '{% for %}',
    '{% nothing %}',
    '{{ a b }}',
]

REWRITTEN += [
    "a{% raw %}\n b{% endraw %}\nc {%- raw -%}\n d {% endraw %} \n  {% raw %}\n\ne{%- endraw -%} f",
    "{{ none | map('upper') | list }} {{ none | selectattr('x') | list | length }} {{ 0 | select | list }} {{ '' | reject | list }}",
    "{{ '<'|safe + '<' }} {{ '<' + '>'|safe + '&' }} {{ ('<'|e) + '<' }} {{ '<'|safe ~ '<' }} {{ '<' ~ '<'|e }} {{ '<b>'|safe|e }}",
]

# Each of these is an error in jinja2.
REFUSED = r"""
{{ none + 'a' }}
{{ 'a' + 1 }}
{{ 'a' + none }}
{{ undefined_thing + 'a' }}
{{ undefined_thing.x }}
{{ none | length }}
{{ 1 | length }}
{% for x in none %}{% endfor %}
{% for x in 5 %}{% endfor %}
{{ 'a' in none }}
{{ 1 in 'abc' }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ [1, 'a'] | sort }}
{{ undefined_thing | tojson }}
{{ map.keys() | tojson }}
{{ [1] + (2,) }}
{{ list.append(4) }}
{{ map.update({'a': 1}) }}
{{ map.pop('k') }}
{{ 'a'.nothing() }}
{{ 'abc'.index('z') }}
{{ 'a' | nothing }}
{{ 'a' is nothing }}
{{ nothing() }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ '%s %s' % 'a' }}
{{ '%d' % 'a' }}
{{ 'x' % 'a' }}
{{ list | map('string') | length }}
{{ list | map('string') | last }}
{{ 'a' * 'b' }}
{{ [1] * none }}
{{ undefined_thing | int }}
{{ ['a'] | sum }}
{{ ','.join([1, 2]) }}
{{ {}.items.x.y }}
{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{% endmacro %}{{ m(b=1) }}
{% include 'x' %}
{% import 'x' as y %}
{% nothing %}
{{ 'a'.split('') }}
{{ range(100001) | list }}
{{ (1, 2) | groupby('x.y') | list }}
"""


def constructs():
    """Templates: a line that starts with a tag, and the lines behind it that do not."""
    for text in [PRINTED, TESTS, FILTERS, METHODS]:
        yield from re.split(r"\n(?=[\[{])", text.strip())
    yield from re.split(r"\n(?={% |{{ )", STATEMENTS.strip())
    yield from REWRITTEN
    yield from REFUSED.strip().split("\n")
    yield "one\r\ntwo {{ text }}\r{% if true %}\r\n  three\r\n{% endif %}\r\n{{ 'a\r\nb' }}\r\n"
