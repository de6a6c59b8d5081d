// Which of the mutations that a program holds is on (choice.py): 0, none.
#pragma once

inline int mutation = 0;
